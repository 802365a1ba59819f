"""The shell: it gathers facts, asks `rules`, does what it is told and records it. See INTERNALS.md."""
