"""`make bench`: how fast mail is taken, sent and listed, side by side with other servers on the same machine."""
