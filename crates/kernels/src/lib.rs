//! Arithmetic on slices: dot products, MaxSim, top-k, k-means, residual codes.
