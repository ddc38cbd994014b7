//! The one training loop of every model that learns here.
