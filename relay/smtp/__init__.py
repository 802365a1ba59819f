"""The SMTP server: sessions, their mail data, and the sockets they come in by."""
