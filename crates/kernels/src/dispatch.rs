//! Run-time choice between the vector units of this machine and portable code.

/// Whether AVX2 and FMA may be used. The answer is cached by the standard library.
#[inline]
pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether a fused multiply-add is one instruction in code that is compiled for
/// any machine of this architecture.
pub(crate) const PORTABLE_FMA: bool = cfg!(target_arch = "aarch64");

/// `a * b + c`; fused where `FMA` says that this is one instruction.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}
