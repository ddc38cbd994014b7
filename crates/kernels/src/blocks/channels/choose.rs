//! Which channels of an input are read: the large ones.

/// Appends the numbers of the inputs with `|x| * scales > threshold` (`scales` empty: all 1)
/// to `channels` and `factors`, and writes the others to `rest`, with 0 in the places of the
/// chosen.
///
/// # Panics
/// When `scales` or `rest` have another length.
pub fn choose_channels(
    x: &[f32],
    scales: &[f32],
    threshold: f32,
    channels: &mut Vec<u32>,
    factors: &mut Vec<f32>,
    rest: &mut [f32],
) {
    assert!(
        scales.is_empty() || scales.len() == x.len(),
        "choose_channels: scales"
    );
    assert_eq!(rest.len(), x.len(), "choose_channels: rest");
    #[cfg(target_arch = "x86_64")]
    if crate::vector::has_vnni() {
        // SAFETY: the machine has AVX-512, and the lengths are asserted above.
        return unsafe { choose_wide(x, scales, threshold, channels, factors, rest) };
    }
    choose_one_by_one(x, scales, threshold, channels, factors, rest);
}

/// [`choose_channels`] on any machine.
fn choose_one_by_one(
    x: &[f32],
    scales: &[f32],
    threshold: f32,
    channels: &mut Vec<u32>,
    factors: &mut Vec<f32>,
    rest: &mut [f32],
) {
    let from = channels.len();
    channels.resize(from + x.len(), 0);
    factors.resize(from + x.len(), 0.0);
    let mut n = from;
    for (j, (&x, rest)) in x.iter().zip(rest).enumerate() {
        let scale = if scales.is_empty() { 1.0 } else { scales[j] };
        let chosen = x.abs() * scale > threshold;
        // Written always, kept if chosen: no branch to be guessed. n <= from + j.
        channels[n] = j as u32;
        factors[n] = x;
        n += usize::from(chosen);
        *rest = if chosen { 0.0 } else { x };
    }
    channels.truncate(n);
    factors.truncate(n);
}

/// [`choose_channels`], sixteen inputs at a time.
///
/// # Safety
/// The machine must have AVX-512 F. `rest` must be as long as `x`, and `scales` too unless it is empty.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f")]
unsafe fn choose_wide(
    x: &[f32],
    scales: &[f32],
    threshold: f32,
    channels: &mut Vec<u32>,
    factors: &mut Vec<f32>,
    rest: &mut [f32],
) {
    use std::arch::x86_64::*;
    // Every step writes sixteen numbers and keeps the first few of them.
    channels.reserve(x.len() + 16);
    factors.reserve(x.len() + 16);
    let (mut of_channels, mut of_factors) = (channels.len(), factors.len());
    // SAFETY: a step reads and writes the numbers of its block of `x`, `scales` and `rest` and no
    // others. It writes sixteen numbers behind those that were found in earlier blocks, for which
    // there is room; what lies before the new lengths is written when they are set.
    unsafe {
        let mut ids = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for from in (0..x.len()).step_by(16) {
            let there = (0xffff_u32 >> (16 - (x.len() - from).min(16))) as u16;
            let x = _mm512_maskz_loadu_ps(there, x.as_ptr().add(from));
            let mut size = _mm512_abs_ps(x);
            if !scales.is_empty() {
                let scale = _mm512_maskz_loadu_ps(there, scales.as_ptr().add(from));
                size = _mm512_mul_ps(size, scale);
            }
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(size, _mm512_set1_ps(threshold));
            let chosen = there & above;
            let to = channels.as_mut_ptr().add(of_channels);
            _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi32(chosen, ids));
            let to = factors.as_mut_ptr().add(of_factors);
            _mm512_storeu_ps(to, _mm512_maskz_compress_ps(chosen, x));
            let to = rest.as_mut_ptr().add(from);
            _mm512_mask_storeu_ps(to, there, _mm512_maskz_mov_ps(!chosen, x));
            of_channels += chosen.count_ones() as usize;
            of_factors += chosen.count_ones() as usize;
            ids = _mm512_add_epi32(ids, _mm512_set1_epi32(16));
        }
        channels.set_len(of_channels);
        factors.set_len(of_factors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::tests::numbers;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chosen_channels_and_the_rest_are_the_input(
            x in prop::collection::vec(-2f32..2.0, 0..70),
            threshold in 0f32..2.0,
            scaled: bool,
        ) {
            let scales: Vec<f32> = if scaled { numbers(x.len(), 3).iter().map(|s| s.abs()).collect() } else { Vec::new() };
            let (mut channels, mut factors, mut rest) = (Vec::new(), Vec::new(), vec![9.0; x.len()]);
            choose_channels(&x, &scales, threshold, &mut channels, &mut factors, &mut rest);
            // On any machine, behind others.
            let mut twin = (vec![5], vec![0.5], vec![9.0; x.len()]);
            choose_one_by_one(&x, &scales, threshold, &mut twin.0, &mut twin.1, &mut twin.2);
            let mut behind = (vec![5], vec![0.5], vec![9.0; x.len()]);
            choose_channels(&x, &scales, threshold, &mut behind.0, &mut behind.1, &mut behind.2);
            prop_assert_eq!(&behind, &twin);
            prop_assert_eq!((&twin.0[1..], &twin.2), (&channels[..], &rest));
            let large = |j: usize| x[j].abs() * scales.get(j).copied().unwrap_or(1.0) > threshold;
            let expected: Vec<u32> = (0..x.len()).filter(|&j| large(j)).map(|j| j as u32).collect();
            prop_assert_eq!(&channels, &expected);
            for (&c, f) in channels.iter().zip(&factors) {
                prop_assert_eq!(*f, x[c as usize]);
                rest[c as usize] = *f;
            }
            prop_assert_eq!(rest, x);
        }
    }
}
