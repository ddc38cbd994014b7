//! Sizes of a model.

use keyfold_nn::mixers::MambaMixerConfig;
use keyfold_sequence::mamba_mixer::Averaging;
use serde::{Deserialize, Serialize};

use crate::SignalError;

/// Sizes of a model; the fields are those of the replication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tsm2Config {
    /// Rows that are looked at.
    pub seq_len: usize,
    /// Rows that are forecast.
    pub pred_len: usize,
    /// Rows of a patch.
    pub patch_len: usize,
    /// Rows from one patch to the next.
    pub stride: usize,
    /// Length of a patch's vector.
    pub d_model: usize,
    /// State numbers of a channel of Mamba.
    pub d_state: usize,
    /// Width of the convolutions.
    pub d_conv: usize,
    /// Channels of Mamba for each number of a vector.
    pub expand: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// How earlier outputs are added up.
    pub averaging: Averaging,
    /// Whether columns are mixed as well.
    pub channel_mixer: bool,
    /// 0, or the number of columns that are forecast: linear maps then mix them in the place of
    /// scans (TSM2-MLP).
    pub mlp_channels: usize,
    /// Share of numbers that learning leaves out.
    pub dropout: f64,
    /// Features of each column that do not change; 0 is what the data has.
    pub static_features: usize,
    /// Columns whose coming rows are known; 0 is what the data has.
    pub future_features: usize,
}

impl Default for Tsm2Config {
    /// Of forecasts of ETT.
    fn default() -> Self {
        let mixer = MambaMixerConfig::default();
        Self {
            seq_len: 512,
            pred_len: 96,
            patch_len: 16,
            stride: 8,
            d_model: mixer.d_model,
            d_state: mixer.d_state,
            d_conv: mixer.d_conv,
            expand: mixer.expand,
            num_layers: mixer.num_layers,
            averaging: mixer.averaging,
            channel_mixer: mixer.channel_mixer,
            mlp_channels: mixer.mlp_channels,
            dropout: mixer.dropout,
            static_features: 0,
            future_features: 0,
        }
    }
}

impl Tsm2Config {
    /// Numbers of a column that become patches: the rows looked at, and as many again from features
    /// that do not change and from what is known of the future.
    pub fn length(&self) -> usize {
        let more = [self.static_features, self.future_features];
        self.seq_len * (1 + more.iter().filter(|n| **n > 0).count())
    }

    /// Patches of a column; the rows that fill no last patch are not looked at.
    pub fn patches(&self) -> usize {
        match self.length().checked_sub(self.patch_len) {
            Some(rest) if self.stride > 0 => rest / self.stride + 1,
            _ => 0,
        }
    }

    pub(super) fn mixer(&self) -> MambaMixerConfig {
        MambaMixerConfig {
            d_model: self.d_model,
            d_state: self.d_state,
            d_conv: self.d_conv,
            expand: self.expand,
            num_layers: self.num_layers,
            averaging: self.averaging,
            channel_mixer: self.channel_mixer,
            mlp_channels: self.mlp_channels,
            dropout: self.dropout,
        }
    }

    /// That linear maps over columns, where there are any, are over as many as are forecast.
    pub(super) fn check_columns(&self, targets: usize) -> Result<(), SignalError> {
        match [0, targets].contains(&self.mlp_channels) {
            true => Ok(()),
            false => Err(SignalError::Unfit(format!(
                "mlp_channels is {}; {targets} columns are forecast",
                self.mlp_channels
            ))),
        }
    }

    pub(super) fn check(&self) -> Result<(), SignalError> {
        for (field, size) in [
            ("pred_len", self.pred_len),
            ("patch_len", self.patch_len),
            ("stride", self.stride),
            ("d_model", self.d_model),
        ] {
            if size == 0 {
                return Err(SignalError::Unfit(format!("{field} is 0")));
            }
        }
        if self.seq_len < 2 || self.patches() == 0 {
            return Err(SignalError::Unfit(format!(
                "seq_len is {}; it must be at least 2 and patch_len, {}",
                self.seq_len, self.patch_len
            )));
        }
        Ok(())
    }
}
