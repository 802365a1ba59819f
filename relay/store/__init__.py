"""The only SQL. Each module is one concern; each writes its events in the transaction of the change they tell of."""
