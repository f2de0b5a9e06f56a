use std::hint::black_box;

/// Returns the position of the first `true`.
///
/// Takes all items and does not branch on them, so the time it takes does not depend on the position.
pub(crate) fn first_match(matches: impl Iterator<Item = bool>) -> Option<usize> {
    let mut first = usize::MAX;
    for (position, matched) in matches.enumerate() {
        // All ones without a match, so that the minimum remains unchanged.
        let mask = black_box(usize::from(matched)).wrapping_sub(1);
        first = first.min(position | mask);
    }
    (first != usize::MAX).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_position_of_first_true() {
        let find = |matches: &[bool]| first_match(matches.iter().copied());
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[false, false]), None);
        assert_eq!(find(&[true, false, true]), Some(0));
        assert_eq!(find(&[false, true, true]), Some(1));
    }
}
