//! The tensors of a table, under the names of the authors' state dict.

use super::keys::Keys;
use super::values::{Moments, Values};
use super::{
    Decoder, KeyValueBottleneck, KeyValueBottleneckConfig, Network, Split, interleaved, turned,
};
use crate::tensors::Tensors;

impl KeyValueBottleneck {
    pub(crate) fn save(&self, tensors: &mut Tensors) {
        let (c, j, k) = (self.keys.books, self.keys.pairs, self.keys.dim);
        let v = self.values.width;
        let keys = &self.keys;
        tensors.put("bottleneck.keys", &[c, j, k], keys.keys.clone());
        tensors.put("bottleneck.keys_avg", &[c, j, k], keys.sums.clone());
        tensors.put("bottleneck.cluster_size", &[c, j], keys.sizes.clone());
        let counts = keys.counts.clone();
        tensors.put("bottleneck.cluster_size_counter", &[c, j], counts);
        tensors.put("bottleneck.values", &[c, j, v], self.values.numbers.clone());
        if let Some(network) = &self.network {
            network.save(tensors);
        }
        if let Some(projection) = &self.projection
            && self.config.splitting_mode == Split::LearnedProjection
        {
            // From `[columns, books · k]` to `[k · books, columns]`.
            let mut all: Vec<f32> = Vec::with_capacity(projection.len());
            for x in 0..k {
                for book in 0..c {
                    all.extend(projection.chunks_exact(c * k).map(|row| row[book * k + x]));
                }
            }
            tensors.put("splitter.proj.weight", &[k * c, self.columns], all);
        } else if let Some(projection) = &self.projection {
            // From `[columns, books · k]` to `[books, columns, k]`.
            let mut all: Vec<f32> = Vec::with_capacity(projection.len());
            for book in 0..c {
                for row in projection.chunks_exact(c * k) {
                    all.extend(&row[book * k..(book + 1) * k]);
                }
            }
            tensors.put("splitter.rand_proj", &[c, self.columns, k], all);
        }
        let width = c * self.config.topk;
        let rows = self.learned.len() / width;
        tensors.put("learned", &[rows, width], self.learned.clone());
    }

    pub(crate) fn load(
        config: KeyValueBottleneckConfig,
        classes: Vec<String>,
        columns: usize,
        (fixed, calls): (bool, u64),
        tensors: &mut Tensors,
    ) -> Result<Self, String> {
        super::check(&config, columns).map_err(|e| e.to_string())?;
        let (c, j, k) = (
            config.num_codebooks,
            config.key_value_pairs_per_codebook,
            config.dim_keys,
        );
        let v = match config.decoder {
            Decoder::CodebookVotingLogits => classes.len(),
            // A decoder with weights takes values of any width.
            _ => match tensors.shape("bottleneck.values") {
                Some(&[_, _, v]) if v > 0 => v,
                _ => return Err("its values are no numbers of pairs".to_owned()),
            },
        };
        let keys = Keys {
            books: c,
            pairs: j,
            dim: k,
            keys: tensors.shaped("bottleneck.keys", &[c, j, k])?,
            sums: tensors.shaped("bottleneck.keys_avg", &[c, j, k])?,
            sizes: tensors.shaped("bottleneck.cluster_size", &[c, j])?,
            counts: tensors.shaped("bottleneck.cluster_size_counter", &[c, j])?,
            placed: true,
        };
        let values = tensors.shaped("bottleneck.values", &[c, j, v])?;
        let projection = match config.splitting_mode {
            Split::Chunk => None,
            Split::RandomProjection => {
                let all = tensors.shaped::<f32>("splitter.rand_proj", &[c, columns, k])?;
                Some(interleaved(&all, columns, k))
            }
            Split::LearnedProjection => {
                let all = tensors.shaped::<f32>("splitter.proj.weight", &[k * c, columns])?;
                Some(turned(&all, columns, k))
            }
        };
        let network = Network::load(&config, (v, classes.len()), tensors)?;
        let width = c * config.topk;
        let rows = tensors.shape("learned").map_or(0, |shape| shape[0]);
        let learned: Vec<u32> = tensors.shaped("learned", &[rows, width])?;
        if learned.iter().any(|pair| *pair as usize >= j) {
            return Err(format!(
                "its rows looked up pairs beyond the {j} that there are"
            ));
        }
        Ok(Self {
            config,
            columns,
            classes,
            fixed,
            projection,
            keys,
            values: Values::known(c, j, v, values),
            network,
            moments: Moments::default(),
            learned,
            calls,
        })
    }

    /// What is saved beside the tensors: whether the classes are fixed, and calls so far.
    pub(crate) fn progress(&self) -> (bool, u64) {
        (self.fixed, self.calls)
    }
}
