use std::hint::black_box;

/// The place of the first of these that is true. All are looked at, and none is branched on: how long it takes says
/// nothing of which one it was.
pub(super) fn first_match(matches: impl Iterator<Item = bool>) -> Option<usize> {
    let mut place = usize::MAX;
    for (at, matched) in matches.enumerate() {
        // All ones where there is no match, so that nothing is smaller than what has been found.
        let mask = black_box(usize::from(matched)).wrapping_sub(1);
        place = place.min(at | mask);
    }
    (place != usize::MAX).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_them() {
        let find = |matches: &[bool]| first_match(matches.iter().copied());
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[false, false]), None);
        assert_eq!(find(&[true, false, true]), Some(0));
        assert_eq!(find(&[false, true, true]), Some(1));
    }
}
