"""`make soak`: half an hour at half the measured capacity, with faults now and then, and everything accounted for."""
