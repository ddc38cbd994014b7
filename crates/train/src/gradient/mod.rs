//! Learning by gradients.
