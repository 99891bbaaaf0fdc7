//! Whether a service works: what probes and deliveries say of it, and when it is left alone.
