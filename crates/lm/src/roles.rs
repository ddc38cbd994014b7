//! The five roles that a long-context method can fill, and what they exchange.
//!
//! | role | decides | trait |
//! |---|---|---|
//! | store | layout and codec of keys and values | [`KvStore`] |
//! | selector | which rows a decoded token reads | [`Selector`] |
//! | evictor | which rows survive | [`Evictor`] |
//! | prefill kernel | how a chunk of a prompt attends | [`Prefill`] |
//! | linear path | how weights are multiplied while decoding | `linear::Linear` |
//!
//! A method that replaces store, selector and prefill at once (ActQKV) is a
//! [`WholeAttention`] instead. How the next token is picked sits above the model,
//! in `decoding`.
//!
//! Everything is `f32` slices. A *row* is a place in the cache of one layer and KV
//! head; its *position* is the place of the token in the text. The two differ as soon
//! as rows are evicted: masks and rotary angles go by position, never by row.

use keyfold_kernels::Team;
pub use keyfold_kernels::attention::RowSet;

/// Sizes of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Length of a head's vectors (not always `hidden / heads`).
    pub head_dim: usize,
    /// Length of the hidden state.
    pub hidden: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
}

impl Dims {
    /// Query heads of a KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// What a role wants the host to compute and hand over; the rest is not computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Keys before rotary embedding instead of after it (a store that rotates when it reads).
    pub keys_before_rope: bool,
    /// Attention mass that each key received, summed over queries.
    pub attention_mass: bool,
}

/// Which rows of a layer the present token reads.
///
/// Kept between steps so that nothing is allocated per token.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// How `lists` are to be read.
    pub reads: Reads,
    /// Ascending row numbers; one list per KV head or per query head, as `reads` says.
    pub lists: Vec<Vec<u32>>,
}

/// Whose lists [`Rows`] has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reads {
    /// Every row; the lists are ignored.
    #[default]
    All,
    /// One list per KV head: its query heads share the rows, each of which is loaded once.
    PerKvHead,
    /// One list per query head (as papers for one query head per KV head have it).
    PerHead,
}

impl Rows {
    /// Clears `lists` to `count` empty ones and says whose they are.
    pub fn start(&mut self, reads: Reads, count: usize) {
        self.reads = reads;
        self.lists.resize_with(count, Vec::new);
        self.lists.iter_mut().for_each(Vec::clear);
    }

    /// Every row.
    pub fn all(&mut self) {
        self.reads = Reads::All;
    }
}

/// Keys and values of a context: their layout and codec, and the arithmetic on them,
/// so that packed forms never become dense tensors.
pub trait KvStore: Send + Sync {
    /// What the host shall hand to [`append`](Self::append).
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Adds rows at the end of a layer: `keys` and `values` are `[positions, kv_heads, head_dim]`.
    fn append(&mut self, layer: usize, positions: &[u32], keys: &[f32], values: &[f32]);

    /// Rows of a layer and KV head. Ragged once an evictor was at work.
    fn len(&self, layer: usize, kv_head: usize) -> usize;

    /// Position of every row, ascending.
    fn positions(&self, layer: usize, kv_head: usize) -> &[u32];

    /// `out[q, r] = query q · key r` for `queries` `[any, head_dim]`; not scaled.
    fn dot(&self, layer: usize, kv_head: usize, queries: &[f32], rows: RowSet, out: &mut [f32]);

    /// `out[q] += sum over r of weights[q, r] * value r`; `out` is `[any, head_dim]`.
    fn mix(&self, layer: usize, kv_head: usize, weights: &[f32], rows: RowSet, out: &mut [f32]);

    /// Keys and values of a run of rows as dense `[rows, head_dim]`, for the matrix
    /// products of a prefill.
    fn read(
        &self,
        layer: usize,
        kv_head: usize,
        rows: std::ops::Range<usize>,
        keys: &mut [f32],
        values: &mut [f32],
    );

    /// Changes values `[n, kv_heads, head_dim]` that are not stored to what [`mix`](Self::mix)
    /// would hand out of them: a store may keep values in a form that the model's output
    /// projection was made for.
    fn present_values(&self, _layer: usize, _values: &mut [f32]) {}

    /// Keeps the rows `keep` (ascending) of a layer and KV head and drops the others.
    fn keep(&mut self, layer: usize, kv_head: usize, keep: &[u32]);

    /// Replaces the keys and values of `rows`, `[rows, head_dim]` each, after rotary embedding as
    /// [`read`](Self::read) gives them (merging).
    fn write(&mut self, layer: usize, kv_head: usize, rows: &[u32], keys: &[f32], values: &[f32]);

    /// What is added to the scaled logits of the first rows; 0 for those behind. Rows that stand
    /// for several have the logarithm of how many.
    fn bias(&self, _layer: usize, _kv_head: usize) -> &[f32] {
        &[]
    }

    /// Replaces [`bias`](Self::bias); a store that gives none keeps none.
    fn set_bias(&mut self, _layer: usize, _kv_head: usize, _bias: Vec<f32>) {}

    /// Drops the rows of all positions from `position` on, in every layer and head.
    fn truncate(&mut self, position: u32);

    /// Bytes that are held for rows now.
    fn bytes(&self) -> u64;

    /// Bytes that reading one row's key and one row's value takes, on average.
    fn row_bytes(&self) -> (u64, u64);

    /// A copy that goes its own way (the beams of a beam search).
    fn fork(&self) -> Box<dyn KvStore>;

    /// Tells how rows are kept from other ways, so that a saved prompt is not read by another.
    fn tag(&self) -> u32;

    /// Positions and rows of a layer and KV head as bytes, for a saved prompt.
    fn save(&self, layer: usize, kv_head: usize) -> (Vec<u32>, Vec<u8>);

    /// Puts back what [`save`](Self::save) gave. False where it does not fit this store.
    fn restore(&mut self, layer: usize, kv_head: usize, positions: &[u32], bytes: &[u8]) -> bool;
}

/// What lives for one decoded token, shared by its layers.
#[derive(Debug, Clone, Default)]
pub struct StepCtx {
    /// Position of the token that is decoded.
    pub position: u32,
    /// *Positions* that an earlier layer of this step chose (after eviction, layers may hold
    /// different rows).
    pub shared: Rows,
    /// Bytes that selectors read for choosing (labels, representatives, bounds).
    pub bytes_read: u64,
}

/// Which rows a decoded token reads.
pub trait Selector: Send {
    /// Rows were appended to a layer; `keys` after rotary embedding, `[positions, kv_heads, head_dim]`.
    fn on_append(&mut self, layer: usize, positions: &[u32], keys: &[f32]);

    /// Chooses the rows of `layer` for `queries` `[heads, head_dim]` (after rotary
    /// embedding). The present token's row is the last of the store.
    #[allow(clippy::too_many_arguments)]
    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    );

    /// Rows of the store from `from` on were dropped or replaced otherwise than by
    /// [`truncate`](Self::truncate) (evicted, merged, corrected): what a selector noted of
    /// them no longer holds. Rows that are appended before the next
    /// [`select`](Self::select) follow as ever.
    fn changed(&mut self, _layer: usize, _kv_head: usize, _from: usize) {}

    /// The store dropped the positions from `position` on.
    fn truncate(&mut self, position: u32);

    /// After `decoded` tokens: how many of the last shall be read again with everything
    /// before them, because their rows came from what was selected.
    fn due_correction(&self, _decoded: usize) -> Option<usize> {
        None
    }
}

/// Kinds of tokens in a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenKinds {
    /// Spans `[from, to)` of positions that stand for images, ascending.
    pub images: Vec<(u32, u32)>,
}

impl TokenKinds {
    /// Whether a position stands for an image.
    pub fn is_image(&self, position: u32) -> bool {
        let before = self.images.partition_point(|span| span.0 <= position);
        before > 0 && position < self.images[before - 1].1
    }

    /// Refuses spans that overlap, are empty, or do not lie in `tokens` tokens.
    ///
    /// # Errors
    /// What is wrong with which span.
    pub fn validate(&self, tokens: usize) -> Result<(), String> {
        let mut end = 0;
        for &(from, to) in &self.images {
            if to <= from {
                return Err(format!("the image span from {from} to {to} is empty"));
            }
            if from < end {
                return Err(format!(
                    "the image span from {from} to {to} overlaps the one before it, which ends at {end}"
                ));
            }
            if to as usize > tokens {
                return Err(format!(
                    "the image span from {from} to {to} is not within the {tokens} tokens of the prompt"
                ));
            }
            end = to;
        }
        Ok(())
    }
}

/// Which rows survive.
pub trait Evictor: Send {
    /// What the host shall measure.
    fn needs(&self) -> Needs;

    /// The whole prompt was read; `mass` is `[kv_heads, rows]` of this layer, summed over
    /// queries and query heads (empty unless asked for).
    fn after_prefill(
        &mut self,
        layer: usize,
        mass: &[f32],
        kinds: &TokenKinds,
        store: &mut dyn KvStore,
    );
}

/// How a chunk of a prompt attends to what is stored (the chunk's own rows included).
pub trait Prefill: Send {
    /// Attention of `queries` `[n, heads, head_dim]` at `positions` (the newest `n` rows
    /// of the store) in `layer`; writes `out` `[n, heads, head_dim]`.
    ///
    /// `mass` is `[kv_heads, rows]` and is added to where an evictor asked for it, else empty.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &mut self,
        layer: usize,
        queries: &[f32],
        positions: &[u32],
        store: &dyn KvStore,
        team: &Team,
        out: &mut [f32],
        mass: &mut [f32],
    );

    /// How many tokens of a prompt are read together; `None` wants the whole prompt at once.
    fn chunk(&self) -> Option<usize> {
        Some(256)
    }
}

/// A method that is store, selector and prefill in one.
pub trait WholeAttention: Send {
    /// Attention of a chunk (one token while decoding): `queries` `[n, heads, head_dim]`,
    /// `keys` and `values` `[n, kv_heads, head_dim]`, all before rotary embedding; writes
    /// `out` `[n, heads, head_dim]`. Returns how many bytes of what is held were read.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &mut self,
        layer: usize,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        positions: &[u32],
        decoding: bool,
        team: &Team,
        out: &mut [f32],
    ) -> u64;

    /// The most tokens of a prompt that may be read together.
    fn chunk(&self) -> usize;

    /// Positions of old tokens that `layer` looked up last: where an answer comes from.
    fn retrieved(&self, _layer: usize) -> Vec<std::ops::Range<u32>> {
        Vec::new()
    }

    /// Bytes that are held.
    fn bytes(&self) -> u64;
}
