//! Places in a model: a hook, perhaps one of its heads, perhaps at one token.

use std::fmt;
use std::str::FromStr;

use keyfold_lm::session::HookPoint;

/// A hook or one head of it, written `blocks.9.attn.hook_q` or `blocks.9.attn.hook_q:6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) point: HookPoint,
    pub(super) head: Option<usize>,
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (point, head) = match text.split_once(':') {
            None => (text, None),
            Some((point, head)) => {
                let number = head.parse();
                (
                    point,
                    Some(number.map_err(|_| format!("'{head}' is no head"))?),
                )
            }
        };
        let point: HookPoint = point
            .parse()
            .map_err(|e: keyfold_lm::LmError| e.to_string())?;
        Ok(Self { point, head })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.point)?;
        self.head.map_or(Ok(()), |head| write!(f, ":{head}"))
    }
}

/// A hook and a token, counted from the last, which is 0: `blocks.9.attn.hook_v:6@3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) hook: Hook,
    pub(super) from_end: Option<usize>,
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (hook, from_end) = match text.split_once('@') {
            None => (text, None),
            Some((hook, token)) => {
                let number = token.parse();
                let number = number.map_err(|_| format!("'{token}' is no token from the end"))?;
                (hook, Some(number))
            }
        };
        let hook = hook.parse()?;
        Ok(Self { hook, from_end })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.hook)?;
        self.from_end.map_or(Ok(()), |token| write!(f, "@{token}"))
    }
}

/// Where the numbers of a hook lie in a token's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) point: HookPoint,
    /// Numbers of a whole row.
    pub(super) row: usize,
    pub(super) from: usize,
    pub(super) width: usize,
}

impl Part {
    /// The numbers of one token.
    pub(super) fn of<'r>(&self, rows: &'r mut [f32], token: usize) -> &'r mut [f32] {
        &mut rows[token * self.row + self.from..][..self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_they_are_read() {
        for text in [
            "blocks.9.attn.hook_q",
            "blocks.9.attn.hook_q:6",
            "blocks.9.hook_resid_post@2",
            "blocks.0.attn.hook_v:0@11",
        ] {
            assert_eq!(text.parse::<Site>().unwrap().to_string(), text);
        }
        for text in [
            "blocks.9.attn.hook_q:x",
            "blocks.9.attn.hook_q@",
            "hook_q:1",
            "@1",
        ] {
            assert!(text.parse::<Site>().is_err(), "{text}");
        }
    }
}
