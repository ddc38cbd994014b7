//! Text encoders: BERT family, late interaction, and the built-in model.
