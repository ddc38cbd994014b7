//! What fills the roles of a session.

use crate::LmError;
use crate::model::Decoder;
use crate::prefill::dense::DensePrefill;
use crate::roles::{Evictor, KvStore, Prefill, Selector, WholeAttention};
use crate::store::{CacheType, DenseStore};

/// One value of each role.
pub enum Policy {
    /// Roles that were chosen one by one.
    Roles {
        /// Layout and codec of the cache.
        store: Box<dyn KvStore>,
        /// What a decoded token reads; everything where there is none.
        selector: Option<Box<dyn Selector>>,
        /// Which rows survive the prompt.
        evictor: Option<Box<dyn Evictor>>,
        /// How a prompt is read.
        prefill: Box<dyn Prefill>,
    },
    /// A method that fills them all.
    Whole(Box<dyn WholeAttention>),
}

impl Policy {
    /// Reads everything, keeps everything.
    ///
    /// # Errors
    /// When the blocks of `cache` do not divide a head's vector.
    pub fn dense(decoder: &Decoder, cache: CacheType, context: usize) -> Result<Self, LmError> {
        let config = decoder.config();
        let store = DenseStore::new(config.dims, cache, context).ok_or_else(|| LmError::Input {
            what: format!(
                "heads of {} numbers cannot be kept in blocks of {}; choose another --cache",
                config.dims.head_dim,
                cache.blocks().block_len(),
            ),
        })?;
        Ok(Self::of(decoder, Box::new(store)))
    }

    /// Reads and keeps everything, in `store`.
    pub fn of(decoder: &Decoder, store: Box<dyn KvStore>) -> Self {
        let config = decoder.config();
        Self::Roles {
            store,
            selector: None,
            evictor: None,
            prefill: Box::new(DensePrefill::new(
                config.dims,
                config.sliding_window.clone(),
                256,
            )),
        }
    }
}
