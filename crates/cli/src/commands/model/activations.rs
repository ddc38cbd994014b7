//! Activations: files of rows, or what a model computes at a place.

use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use keyfold_core::{NoProgress, Progress};
use keyfold_data::rows::{RowOptions, read_rows};
use keyfold_inspect::sae_evaluation::indirect_object::SmallModel;
use keyfold_lm::session::{HookPoint, Observer, Policy, Session, Site};
use keyfold_lm::store::CacheType;
use keyfold_lm::{SpecialTokens, Tokenizer};

use super::place::{Hook, Part};
use crate::args::Globals;
use crate::commands::lm::setup::Loaded;
use crate::failure::wrong_use;
use crate::progress::StderrProgress;

/// What becomes of the rows of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Pool {
    /// Each token, or place of a map, is a sample
    None,
    /// Their mean
    Mean,
    /// The last token
    Last,
}

/// Rows of one network.
pub(super) struct Seen {
    pub(super) rows: Vec<f32>,
    pub(super) width: usize,
    /// Tokens of each text, where each is a row.
    pub(super) tokens: Vec<usize>,
}

/// Whether a name is a file of rows.
pub(super) fn is_rows(name: &str) -> bool {
    let ending = Path::new(name)
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    ["npy", "npz", "csv", "tsv", "parquet", "safetensors"].contains(&ending)
        && Path::new(name).is_file()
}

/// Rows of a file.
pub(super) fn of_file(name: &str, tensor: Option<&str>) -> anyhow::Result<Seen> {
    let options = RowOptions {
        tensor: tensor.map(str::to_owned),
        ..RowOptions::default()
    };
    let rows = read_rows(Path::new(name), &options)?;
    Ok(Seen {
        width: rows.width,
        rows: rows.values,
        tokens: Vec::new(),
    })
}

/// The lines of a file that are not empty.
pub(super) fn texts(path: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = std::fs::read(path)
        .map_err(|e| wrong_use(format!("cannot read {}: {e}", path.display())))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .filter(|l| !l.trim().is_empty())
        .map(str::to_owned)
        .collect();
    match lines.is_empty() {
        true => Err(wrong_use(format!("{} holds no text", path.display()))),
        false => Ok(lines),
    }
}

/// A model that is looked into.
pub(super) enum Subject {
    /// One of the language engine.
    Language {
        loaded: Box<Loaded>,
        tokenizer: Box<Tokenizer>,
    },
    /// A small one that was trained here.
    Small(Box<SmallModel>),
}

impl Subject {
    pub(super) fn open(
        name: &str,
        globals: &Globals,
        progress: &StderrProgress,
    ) -> anyhow::Result<Self> {
        if SmallModel::is_at(Path::new(name)) {
            return Ok(Self::Small(Box::new(SmallModel::load(Path::new(name))?)));
        }
        let loaded = Box::new(Loaded::open(name, globals, progress)?);
        let tokenizer = Box::new(loaded.file.tokenizer()?);
        Ok(Self::Language { loaded, tokenizer })
    }

    /// What every text of the model begins with.
    fn prefix(&self) -> &[u32] {
        match self {
            Self::Language { tokenizer, .. } => tokenizer.prefix(),
            Self::Small(_) => &[],
        }
    }

    /// The tokens of a text, behind what every text of the model begins with.
    pub(super) fn tokens(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut tokens = self.prefix().to_vec();
        tokens.extend(self.plain(text)?);
        Ok(tokens)
    }

    fn plain(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        Ok(match self {
            Self::Language { tokenizer, .. } => tokenizer.encode(text, SpecialTokens::Plain)?,
            Self::Small(model) => model.tokens_of(text)?,
        })
    }

    /// The one token of an answer, one that the model can give.
    pub(super) fn answer(&self, answer: &str) -> anyhow::Result<u32> {
        let known = match self {
            Self::Language { loaded, .. } => loaded.decoder.config().dims.vocab,
            // It reads no token but those that it gives.
            Self::Small(_) => usize::MAX,
        };
        match self.plain(answer)?[..] {
            [token] if (token as usize) < known => Ok(token),
            [token] => {
                anyhow::bail!("the answer '{answer}' is token {token}, and the model knows {known}")
            }
            ref tokens => anyhow::bail!(
                "the answer '{answer}' is {} tokens; it must be one",
                tokens.len()
            ),
        }
    }

    /// Where the numbers of a hook lie, refused where the model has no such layer, place or head.
    pub(super) fn part(&self, hook: Hook) -> anyhow::Result<Part> {
        let point = hook.point;
        let (layers, heads, row) = match self {
            Self::Language { loaded, .. } => {
                let dims = loaded.decoder.config().dims;
                let heads = match point.site {
                    Site::Z | Site::Q => dims.heads,
                    Site::K | Site::V => dims.kv_heads,
                    _ => 0,
                };
                let row = match heads {
                    0 => dims.hidden,
                    heads => heads * dims.head_dim,
                };
                (dims.layers, heads, row)
            }
            Self::Small(_) if point.site != Site::Z => {
                return Err(wrong_use(format!(
                    "{point}: a small model is looked into at blocks.{}.attn.hook_z",
                    point.layer
                )));
            }
            Self::Small(model) => {
                let config = model.config();
                (config.layers, config.heads, config.d_model)
            }
        };
        if point.layer >= layers {
            return Err(wrong_use(format!(
                "{point}: the model has {layers} layers, blocks.0 to blocks.{}",
                layers - 1
            )));
        }
        let (from, width) = match hook.head {
            None => (0, row),
            Some(_) if heads == 0 => {
                return Err(wrong_use(format!(
                    "{hook}: only attn.hook_q, hook_k, hook_v and hook_z have heads"
                )));
            }
            Some(head) if head >= heads => {
                return Err(wrong_use(format!(
                    "{hook}: there are {heads} heads, 0 to {}",
                    heads - 1
                )));
            }
            Some(head) => (head * (row / heads), row / heads),
        };
        Ok(Part {
            point,
            row,
            from,
            width,
        })
    }

    /// Reads tokens; `observer` sees the pass. Gives the logits after the last.
    pub(super) fn read(
        &self,
        tokens: &[u32],
        observer: &mut dyn Observer,
    ) -> anyhow::Result<Vec<f32>> {
        match self {
            Self::Language { loaded, .. } => {
                let decoder = &loaded.decoder;
                let policy = Policy::dense(decoder, CacheType::F32, tokens.len())?;
                let mut session =
                    Session::new(Arc::clone(decoder), policy, Arc::clone(&loaded.team));
                session.observe(tokens, &NoProgress, observer)?;
                Ok(session.logits().to_vec())
            }
            Self::Small(model) => {
                let site = Site::Z;
                let mut see =
                    |layer, rows: &mut [f32]| observer.at(HookPoint { layer, site }, rows);
                Ok(model.read(tokens, &mut see)?)
            }
        }
    }

    /// The gradient, for prompts one after the other, of one token's logit less another's (`pairs`) by
    /// a hook at the last token.
    pub(super) fn gradients(
        &self,
        tokens: &[u32],
        pairs: &[(u32, u32)],
        part: &Part,
    ) -> anyhow::Result<Vec<f32>> {
        let Self::Small(model) = self else {
            return Err(wrong_use(
                "gradients are made of models of 'keyfold train indirect-object'; for other models write \
                 them with TransformerLens, one row for each of --activations",
            ));
        };
        let mut rows = model.difference_gradients(tokens, pairs, part.point.layer)?;
        let count = rows.len() / part.row;
        let parts: Vec<Vec<f32>> = (0..count).map(|i| part.of(&mut rows, i).to_vec()).collect();
        Ok(parts.concat())
    }

    /// Rows at a place for every text.
    pub(super) fn activations(
        &self,
        texts: &[String],
        hook: Hook,
        pool: Pool,
        progress: &StderrProgress,
    ) -> anyhow::Result<Seen> {
        let part = self.part(hook)?;
        let width = part.width;
        let mut seen = Seen {
            rows: Vec::new(),
            width,
            tokens: Vec::new(),
        };
        progress.start("reading texts", "texts", Some(texts.len() as u64));
        for text in texts {
            if progress.cancelled() {
                progress.finish();
                return Err(keyfold_lm::LmError::Stopped.into());
            }
            let tokens = self.tokens(text)?;
            if tokens.is_empty() {
                continue;
            }
            let mut keep = Keep {
                part,
                rows: Vec::new(),
            };
            self.read(&tokens, &mut keep)?;
            // What every text begins with says nothing of the text.
            let from = self.prefix().len().min(tokens.len() - 1);
            let rows = &keep.rows[from * width..];
            match pool {
                Pool::None => {
                    seen.tokens.push(tokens.len() - from);
                    seen.rows.extend_from_slice(rows);
                }
                Pool::Last => seen.rows.extend_from_slice(&rows[rows.len() - width..]),
                Pool::Mean => {
                    let mut mean = vec![0.0; width];
                    let share = 1.0 / (rows.len() / width) as f32;
                    for row in rows.chunks_exact(width) {
                        mean.iter_mut().zip(row).for_each(|(m, x)| *m += share * x);
                    }
                    seen.rows.extend(mean);
                }
            }
            progress.advance(1);
        }
        progress.finish();
        Ok(seen)
    }
}

/// Keeps the rows of one place.
struct Keep {
    part: Part,
    rows: Vec<f32>,
}

impl Observer for Keep {
    fn at(&mut self, point: HookPoint, rows: &mut [f32]) {
        if point != self.part.point {
            return;
        }
        for token in 0..rows.len() / self.part.row {
            self.rows.extend_from_slice(self.part.of(rows, token));
        }
    }
}
