//! Medians and quartiles of rounds in which candidates alternate.

use std::fmt;

/// The median and the quartiles of some values.
#[derive(Clone, Copy)]
pub(crate) struct Quartiles {
    low: f64,
    median: f64,
    high: f64,
}

impl Quartiles {
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| values[(values.len() - 1) * quarter / 4];
        Self { low: at(1), median: at(2), high: at(3) }
    }

    /// Of the ratio in each round.
    pub(crate) fn of_ratios(values: &[f64], to: &[f64]) -> Self {
        let ratios: Vec<_> = values.iter().zip(to).map(|(value, to)| value / to).collect();
        Self::of(&ratios)
    }
}

impl fmt::Display for Quartiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3}   {:.3} to {:.3}", self.median, self.low, self.high)
    }
}

/// Prints the instructions for AES and SHA that this processor has, since most of the results depend on them.
pub(crate) fn print_instructions() {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("aes", is_x86_feature_detected!("aes")),
            ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
            ("vaes", is_x86_feature_detected!("vaes")),
            ("vpclmulqdq", is_x86_feature_detected!("vpclmulqdq")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("sha", is_x86_feature_detected!("sha")),
        ];
        let (has, lacks): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, is_detected)| *is_detected);
        let names =
            |list: Vec<(&'static str, bool)>| list.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        println!("processor: has {:?}, lacks {:?}", names(has), names(lacks));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let aes = std::arch::is_aarch64_feature_detected!("aes");
        let sha2 = std::arch::is_aarch64_feature_detected!("sha2");
        println!("processor: aes {aes}, sha2 {sha2}");
    }
}
