//! The services that have registered, and how long they are believed to be there.
