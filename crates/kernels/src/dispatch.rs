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

/// Defines a function that runs `body::<true>` compiled for AVX2 and FMA on
/// machines that have them, and `body` compiled for any machine elsewhere.
///
/// `body` is `#[inline(always)]` and written so that the compiler turns its
/// loops into vector code: no branch inside a loop, sums in separate lanes.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                if $crate::dispatch::has_avx2() {
                    // SAFETY: the machine has AVX2 and FMA.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            $body::<{ $crate::dispatch::PORTABLE_FMA }>($($arg),*)
        }
    };
}
pub(crate) use simd;
