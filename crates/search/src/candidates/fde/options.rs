//! What a user chooses, in one line: `reps=20,simhash=5,proj=16,pq=16x4`.

use std::fmt;
use std::str::FromStr;

use super::{Choice, FdeConfig, Generator, Projection};

/// How the passages of a store are encoded.
///
/// The default is (20, 5, 16) without filling, in codes of 16 centroids for 4
/// coordinates: 1280 bytes for a passage.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FdeOptions {
    /// The encoding.
    #[serde(flatten)]
    pub config: FdeConfig,
    /// Whether the mean is taken from all vectors.
    pub center: Choice,
    /// Bits of a code: 4 or 8.
    pub bits: u32,
    /// Coordinates that share a code, at most; fewer where the projection is no
    /// multiple of it.
    pub group: usize,
    /// Whether empty cells are filled is found out on a sample of the passages; what
    /// `config` says of it does not count.
    #[serde(default)]
    pub fill_auto: bool,
}

impl Default for FdeOptions {
    fn default() -> Self {
        Self {
            config: FdeConfig::default(),
            center: Choice::Auto,
            bits: 4,
            group: 4,
            fill_auto: false,
        }
    }
}

const KEYS: &str = "reps=20, simhash=5, proj=16, seed=42, sketch=dense|count|identity, fill=auto|on|off, \
                    center=auto|on|off, final=none|N, pq=16x4|256x8, rng=chacha|libstdcxx";

impl FromStr for FdeOptions {
    type Err = String;

    /// Reads `key=value` pairs between commas; what is not named has its default.
    fn from_str(s: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for pair in s.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let wrong = || format!("'{pair}' says nothing about encodings; they take {KEYS}");
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<usize>().map_err(|_| wrong());
            let c = &mut options.config;
            match (key, value) {
                ("reps", _) => c.num_repetitions = number()?,
                ("simhash", _) => c.num_simhash_projections = number()?,
                ("proj", _) => c.projection_dimension = number()?,
                ("seed", _) => c.seed = number()? as u64,
                ("sketch", "dense") => c.projection_type = Projection::Dense,
                ("sketch", "count") => c.projection_type = Projection::Count,
                ("sketch", "identity") => c.projection_type = Projection::Identity,
                ("fill", "auto" | "on" | "off") => {
                    options.fill_auto = value == "auto";
                    c.fill_empty_partitions = value == "on";
                }
                ("rng", "chacha") => c.generator = Generator::ChaCha,
                ("rng", "libstdcxx") => c.generator = Generator::Libstdcxx,
                ("center", "auto") => options.center = Choice::Auto,
                ("center", "on") => options.center = Choice::On,
                ("center", "off") => options.center = Choice::Off,
                ("final", "none") => c.final_projection_dimension = None,
                ("final", _) => c.final_projection_dimension = Some(number()?),
                ("pq", _) => {
                    let (centroids, group) = value.split_once('x').ok_or_else(wrong)?;
                    options.bits = match centroids {
                        "16" => 4,
                        "256" => 8,
                        _ => return Err(wrong()),
                    };
                    options.group = group.parse().ok().filter(|&g| g > 0).ok_or_else(wrong)?;
                }
                _ => return Err(wrong()),
            }
        }
        Ok(options)
    }
}

impl fmt::Display for FdeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.config;
        write!(
            f,
            "reps={},simhash={},proj={},seed={},sketch={},fill={},center={},final={},pq={}x{}",
            c.num_repetitions,
            c.num_simhash_projections,
            c.projection_dimension,
            c.seed,
            match c.projection_type {
                Projection::Dense => "dense",
                Projection::Count => "count",
                Projection::Identity => "identity",
            },
            match c.fill_empty_partitions {
                _ if self.fill_auto => "auto",
                true => "on",
                false => "off",
            },
            match self.center {
                Choice::Auto => "auto",
                Choice::On => "on",
                Choice::Off => "off",
            },
            c.final_projection_dimension
                .map_or("none".to_owned(), |n| n.to_string()),
            1u32 << self.bits.min(8),
            self.group,
        )?;
        match c.generator {
            Generator::ChaCha => Ok(()),
            Generator::Libstdcxx => write!(f, ",rng=libstdcxx"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_is_not() {
        let all =
            "reps=10,simhash=4,proj=8,seed=7,sketch=count,fill=on,center=off,final=640,pq=256x8";
        let options: FdeOptions = all.parse().unwrap();
        assert_eq!(options.to_string(), all);
        for text in [
            all.replace("fill=on", "fill=auto"),
            format!("{all},rng=libstdcxx"),
        ] {
            let options: FdeOptions = text.parse().unwrap();
            assert_eq!(options.to_string(), text);
            let json = serde_json::to_string(&options).unwrap();
            assert_eq!(serde_json::from_str::<FdeOptions>(&json).unwrap(), options);
        }
        assert_eq!("".parse(), Ok(FdeOptions::default()));
        let default = FdeOptions::default();
        assert_eq!(default.to_string().parse(), Ok(default));
        for bad in [
            "reps",
            "reps=x",
            "planes=3",
            "pq=15x4",
            "pq=16x0",
            "fill=maybe",
            "reps=-1",
        ] {
            let e = bad.parse::<FdeOptions>().unwrap_err();
            assert!(e.contains(bad) && e.contains("simhash=5"), "{e}");
        }
    }
}
