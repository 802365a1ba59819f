"""The relay behind a mail server: the milter protocol, version 6, as Postfix and sendmail speak it."""
