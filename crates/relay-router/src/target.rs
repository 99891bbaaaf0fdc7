//! Ways to a service: HTTP, and what is allowed to be reached.
