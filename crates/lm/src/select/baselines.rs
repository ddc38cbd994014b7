//! What selectors are compared with: the best possible choice of rows, choices that ignore
//! the query, and cheaper guesses of scores.
//!
//! Random and first channels for Double Sparsity are
//! [`Rankings::random`](super::rankings::Rankings::random) and
//! [`first`](super::rankings::Rankings::first); the mean query for ActQKV is
//! [`Probe::Mean`](super::act_qkv::Probe::Mean).

use keyfold_kernels::{Team, top_k_rows};

use super::side::{Notes, SideCache};
use super::{
    Budget, Work, choose_lists, key_bytes, of_group, pick, reads_all, score_all, sort_unique, works,
};
use crate::refusal::Refusal;
use crate::roles::{Dims, KvStore, Reads, Rows, Selector, StepCtx};

/// The rows of greatest full score: no method can choose better by scores, and none reads
/// as much to choose.
#[derive(Debug)]
pub struct OracleTopK {
    tokens: Budget,
    dense_layers: usize,
    dims: Dims,
    works: Vec<Work>,
}

impl OracleTopK {
    /// `tokens` rows for each query head after `dense_layers` dense layers.
    pub fn new(tokens: Budget, dense_layers: usize, dims: Dims) -> Result<Self, Refusal> {
        tokens.check("oracle", "tokens")?;
        Ok(Self {
            tokens,
            dense_layers,
            works: works(&dims, 1),
            dims,
        })
    }
}

impl Selector for OracleTopK {
    fn on_append(&mut self, _layer: usize, _positions: &[u32], _keys: &[f32]) {}

    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    ) {
        let (dims, tokens) = (self.dims, self.tokens);
        if layer < self.dense_layers || reads_all(layer, &dims, store, tokens) {
            return rows.all();
        }
        ctx.bytes_read += key_bytes(layer, &dims, store);
        choose_lists(
            &mut self.works,
            Reads::PerKvHead,
            team,
            rows,
            |head, work| {
                let len = store.len(layer, head);
                score_all(
                    layer,
                    head,
                    of_group(queries, head, &dims),
                    store,
                    &dims,
                    work,
                );
                let Work {
                    scores,
                    chosen,
                    lists,
                    ..
                } = work;
                for scores in scores.chunks_exact(len) {
                    pick(scores, tokens.of(len), true, chosen, &mut lists[0]);
                }
                sort_unique(&mut lists[0]);
            },
        );
    }

    fn truncate(&mut self, _position: u32) {}
}

/// The newest tokens, and the first ones (StreamingLLM).
#[derive(Debug, Clone)]
pub struct SlidingWindow {
    window: usize,
    sink: usize,
    dense_layers: usize,
    dims: Dims,
}

impl SlidingWindow {
    /// The `window` newest and `sink` first tokens after `dense_layers` dense layers.
    pub fn new(
        window: usize,
        sink: usize,
        dense_layers: usize,
        dims: Dims,
    ) -> Result<Self, Refusal> {
        if window == 0 {
            return Err(Refusal::setting(
                "window",
                "window must be at least 1 token",
            ));
        }
        Ok(Self {
            window,
            sink,
            dense_layers,
            dims,
        })
    }
}

impl Selector for SlidingWindow {
    fn on_append(&mut self, _layer: usize, _positions: &[u32], _keys: &[f32]) {}

    fn select(
        &mut self,
        layer: usize,
        _queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        _team: &Team,
        rows: &mut Rows,
    ) {
        if layer < self.dense_layers {
            return rows.all();
        }
        let window = (ctx.position as usize + 1).saturating_sub(self.window);
        rows.start(Reads::PerKvHead, self.dims.kv_heads);
        for (head, list) in rows.lists.iter_mut().enumerate() {
            let positions = store.positions(layer, head);
            let place = |position: usize| positions.partition_point(|&p| (p as usize) < position);
            let (sink, from) = (place(self.sink), place(window));
            list.extend(0..sink.min(from) as u32);
            list.extend(from as u32..positions.len() as u32);
        }
    }

    fn truncate(&mut self, _position: u32) {}
}

/// Pages by the greatest score that a key of them could have, from the least and greatest
/// number of every channel (Quest: Jiaming Tang et al., 2024).
#[derive(Debug)]
pub struct QuestPages {
    page: usize,
    tokens: Budget,
    dense_layers: usize,
    dims: Dims,
    cache: SideCache<Pages>,
    works: Vec<Work>,
}

/// Bounds of the pages of one KV head.
#[derive(Debug)]
struct Pages {
    page: usize,
    dim: usize,
    rows: usize,
    /// `[pages, 2, dim]`: least numbers, greatest numbers.
    bounds: Vec<f32>,
}

impl Notes for Pages {
    fn push(&mut self, key: &[f32]) {
        if self.rows.is_multiple_of(self.page) {
            self.bounds.extend_from_slice(key);
            self.bounds.extend_from_slice(key);
        } else {
            let at = self.rows / self.page * 2 * self.dim;
            let (least, greatest) = self.bounds[at..].split_at_mut(self.dim);
            for ((least, greatest), &x) in least.iter_mut().zip(greatest).zip(key) {
                *least = least.min(x);
                *greatest = greatest.max(x);
            }
        }
        self.rows += 1;
    }

    fn len(&self) -> usize {
        self.rows
    }

    /// A page that loses rows keeps its bounds, which still hold for those that stay.
    fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
        self.bounds
            .truncate(self.rows.div_ceil(self.page) * 2 * self.dim);
    }

    fn bytes(&self) -> u64 {
        self.bounds.len() as u64 * 4
    }
}

impl QuestPages {
    /// As many pages of `page` rows as `tokens` rows fill, after `dense_layers` dense layers.
    pub fn new(
        page: usize,
        tokens: Budget,
        dense_layers: usize,
        dims: Dims,
    ) -> Result<Self, Refusal> {
        tokens.check("quest", "tokens")?;
        if page == 0 {
            return Err(Refusal::setting("quest", "page must be at least 1 row"));
        }
        let pages = || Pages {
            page,
            dim: dims.head_dim,
            rows: 0,
            bounds: Vec::new(),
        };
        let cache = SideCache::new(dims, dense_layers, |_| {
            Ok::<_, Refusal>((0..dims.kv_heads).map(|_| pages()).collect())
        })?;
        Ok(Self {
            page,
            tokens,
            dense_layers,
            dims,
            cache,
            works: works(&dims, 1),
        })
    }
}

impl Selector for QuestPages {
    fn on_append(&mut self, layer: usize, _positions: &[u32], keys: &[f32]) {
        self.cache.on_append(layer, keys);
    }

    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    ) {
        let (dims, tokens, page) = (self.dims, self.tokens, self.page);
        if layer < self.dense_layers || reads_all(layer, &dims, store, tokens) {
            return rows.all();
        }
        self.cache.catch_up(layer, store);
        ctx.bytes_read += self.cache.layer_bytes(layer);
        let cache = &self.cache;
        choose_lists(
            &mut self.works,
            Reads::PerKvHead,
            team,
            rows,
            |head, work| {
                let notes = cache.of(layer, head);
                let mut pages = Vec::new();
                for query in of_group(queries, head, &dims).chunks_exact(dims.head_dim) {
                    work.scores.clear();
                    let bounds = notes.bounds.chunks_exact(2 * dims.head_dim);
                    work.scores.extend(bounds.map(|bounds| {
                        let (least, greatest) = bounds.split_at(dims.head_dim);
                        let channels = query.iter().zip(least.iter().zip(greatest));
                        let terms =
                            channels.map(|(q, (least, greatest))| (q * least).max(q * greatest));
                        terms.sum::<f32>()
                    }));
                    let count = tokens.of(notes.rows).div_ceil(page);
                    pick(&work.scores, count, true, &mut work.chosen, &mut pages);
                }
                sort_unique(&mut pages);
                let rows = pages.iter().flat_map(|&number| {
                    let from = number as usize * page;
                    from as u32..(from + page).min(notes.rows) as u32
                });
                work.lists[0].extend(rows);
            },
        );
    }

    fn changed(&mut self, layer: usize, kv_head: usize, from: usize) {
        self.cache.changed(layer, kv_head, from);
    }

    fn truncate(&mut self, position: u32) {
        self.cache.truncate(position);
    }
}

/// Rows by scores on means of adjacent channels instead of on chosen channels.
#[derive(Debug)]
pub struct PooledChannels {
    factor: usize,
    tokens: Budget,
    dense_layers: usize,
    dims: Dims,
    cache: SideCache<Pooled>,
    works: Vec<Work>,
}

/// Pooled keys of one KV head.
#[derive(Debug)]
struct Pooled {
    factor: usize,
    width: usize,
    /// `[rows, width]`.
    rows: Vec<f32>,
}

fn pool(row: &[f32], factor: usize) -> impl Iterator<Item = f32> {
    let groups = row.chunks(factor);
    groups.map(move |group| group.iter().sum::<f32>() / factor as f32)
}

impl Notes for Pooled {
    fn push(&mut self, key: &[f32]) {
        self.rows.extend(pool(key, self.factor));
    }

    fn len(&self) -> usize {
        self.rows.len() / self.width
    }

    fn truncate(&mut self, rows: usize) {
        self.rows.truncate(rows * self.width);
    }

    fn bytes(&self) -> u64 {
        self.rows.len() as u64 * 4
    }
}

impl PooledChannels {
    /// Means of `factor` channels; `tokens` rows for each query head after `dense_layers`
    /// dense layers.
    pub fn new(
        factor: usize,
        tokens: Budget,
        dense_layers: usize,
        dims: Dims,
    ) -> Result<Self, Refusal> {
        tokens.check("pooled channels", "tokens")?;
        if factor == 0 || factor > dims.head_dim {
            return Err(Refusal::setting(
                "pooled channels",
                format!("groups of {factor} of {} channels", dims.head_dim),
            ));
        }
        let cache = SideCache::new(dims, dense_layers, |_| {
            let pooled = || Pooled {
                factor,
                width: dims.head_dim.div_ceil(factor),
                rows: Vec::new(),
            };
            Ok::<_, Refusal>((0..dims.kv_heads).map(|_| pooled()).collect())
        })?;
        Ok(Self {
            factor,
            tokens,
            dense_layers,
            dims,
            cache,
            works: works(&dims, 1),
        })
    }
}

impl Selector for PooledChannels {
    fn on_append(&mut self, layer: usize, _positions: &[u32], keys: &[f32]) {
        self.cache.on_append(layer, keys);
    }

    fn select(
        &mut self,
        layer: usize,
        queries: &[f32],
        store: &dyn KvStore,
        ctx: &mut StepCtx,
        team: &Team,
        rows: &mut Rows,
    ) {
        let (dims, tokens, factor) = (self.dims, self.tokens, self.factor);
        if layer < self.dense_layers || reads_all(layer, &dims, store, tokens) {
            return rows.all();
        }
        self.cache.catch_up(layer, store);
        ctx.bytes_read += self.cache.layer_bytes(layer);
        let cache = &self.cache;
        choose_lists(
            &mut self.works,
            Reads::PerKvHead,
            team,
            rows,
            |head, work| {
                let notes = cache.of(layer, head);
                let mut chosen = Vec::new();
                for query in of_group(queries, head, &dims).chunks_exact(dims.head_dim) {
                    let query: Vec<f32> = pool(query, factor).collect();
                    let keys = notes.rows.chunks_exact(notes.width);
                    work.scores.clear();
                    work.scores
                        .extend(keys.map(|key| keyfold_kernels::dot(key, &query)));
                    top_k_rows(&work.scores, tokens.of(notes.len()), &mut work.chosen);
                    chosen.extend_from_slice(&work.chosen);
                }
                chosen.push(notes.len() as u32 - 1);
                sort_unique(&mut chosen);
                work.lists[0].extend(chosen);
            },
        );
    }

    fn changed(&mut self, layer: usize, kv_head: usize, from: usize) {
        self.cache.changed(layer, kv_head, from);
    }

    fn truncate(&mut self, position: u32) {
        self.cache.truncate(position);
    }
}
