//! Layers and losses that can be trained, on the tensor framework Burn.
