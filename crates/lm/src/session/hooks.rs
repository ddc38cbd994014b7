//! Places inside a pass, by the names that TransformerLens gives them.

use std::fmt;
use std::str::FromStr;

use crate::LmError;

/// What is seen at a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Site {
    /// The states before the layer, `[n, hidden]`.
    ResidPre,
    /// The queries, before norms of heads and rotary embedding, `[n, heads, head_dim]`.
    Q,
    /// The keys, before norms of heads and rotary embedding, `[n, kv_heads, head_dim]`.
    K,
    /// The values, `[n, kv_heads, head_dim]`.
    V,
    /// The outputs of the heads, `[n, heads, head_dim]`.
    Z,
    /// What attention adds, `[n, hidden]`.
    AttnOut,
    /// The states between attention and MLP, `[n, hidden]`.
    ResidMid,
    /// What the MLP adds, `[n, hidden]`.
    MlpOut,
    /// The states after the layer, `[n, hidden]`.
    ResidPost,
}

const NAMES: [(Site, &str); 9] = [
    (Site::ResidPre, "hook_resid_pre"),
    (Site::Q, "attn.hook_q"),
    (Site::K, "attn.hook_k"),
    (Site::V, "attn.hook_v"),
    (Site::Z, "attn.hook_z"),
    (Site::AttnOut, "hook_attn_out"),
    (Site::ResidMid, "hook_resid_mid"),
    (Site::MlpOut, "hook_mlp_out"),
    (Site::ResidPost, "hook_resid_post"),
];

/// A site of a layer, written as `blocks.3.hook_resid_post` or `blocks.3.attn.hook_z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HookPoint {
    /// The layer, from 0.
    pub layer: usize,
    /// What is seen there.
    pub site: Site,
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(site, _)| *site == self.site);
        write!(f, "blocks.{}.{}", self.layer, name.map_or("", |n| n.1))
    }
}

impl FromStr for HookPoint {
    type Err = LmError;

    fn from_str(text: &str) -> Result<Self, LmError> {
        let read = || {
            let (layer, name) = text.strip_prefix("blocks.")?.split_once('.')?;
            let (site, _) = NAMES.iter().find(|(_, n)| *n == name)?;
            Some(Self {
                layer: layer.parse().ok()?,
                site: *site,
            })
        };
        read().ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|n| n.1).collect();
            LmError::Input {
                what: format!(
                    "'{text}' is no place in a model; write blocks.LAYER.NAME with NAME one of {}",
                    known.join(", ")
                ),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_they_are_read() {
        for (site, name) in NAMES {
            let text = format!("blocks.12.{name}");
            let point: HookPoint = text.parse().unwrap();
            assert_eq!(point, HookPoint { layer: 12, site });
            assert_eq!(point.to_string(), text);
        }
        for text in [
            "",
            "blocks",
            "blocks.1",
            "blocks.x.hook_resid_pre",
            "hook_resid_pre",
            "blocks.1.hook_q",
        ] {
            assert!(text.parse::<HookPoint>().is_err(), "{text}");
        }
    }
}
