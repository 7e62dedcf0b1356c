//! Smaller inputs that fail alike.

/// Leave parts out, then make bytes zero, as long as the input fails and there is time.
pub fn minimize(
    input: &[u8],
    mut fails: impl FnMut(&[u8]) -> bool,
    in_time: impl Fn() -> bool,
) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut size = best.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let before = best.len();
        while at < best.len() && in_time() {
            let end = (at + size).min(best.len());
            let smaller = [&best[..at], &best[end..]].concat();
            if fails(&smaller) {
                best = smaller;
            } else {
                at = end;
            }
        }
        if !in_time() || (size == 1 && best.len() == before) {
            break;
        }
        size = (size / 2).max(1);
    }
    for at in 0..best.len() {
        if best[at] != 0 && in_time() {
            let mut other = best.clone();
            other[at] = 0;
            if fails(&other) {
                best = other;
            }
        }
    }
    best
}
