//! The codebook of product quantization: k-means for each sub-vector.
//!
//! Lance's own training of it takes two thirds of an IVF_PQ build, most of that in a search for the
//! nearest centroid that goes value by value. Here are the same sample, the same number of iterations and
//! the same tolerance, with distances and search in one pass over registers, and Hamerly's bounds ("Making
//! k-means even faster", 2010): a point that cannot have come nearer to another centroid is not compared.

use rayon::prelude::*;

/// Lance's: training ends where the mean distance changes by less.
const TOLERANCE: f64 = 1e-4;
/// How far the two halves of a split cluster are moved apart.
const SPLIT: f32 = 1.0 / 1024.0;

/// What to train.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codebook {
    pub dimension: usize,
    pub num_sub_vectors: usize,
    pub codes: usize,
    pub max_iters: usize,
    pub redos: usize,
}

impl Codebook {
    /// Train on vectors, one after the other in `sample`, at least as many as codes; the values stand by
    /// sub-vector, code and dimension.
    pub fn train(&self, sample: &[f32], seed: u64) -> Vec<f32> {
        let width = self.dimension / self.num_sub_vectors;
        let parts: Vec<Vec<f32>> = (0..self.num_sub_vectors)
            .into_par_iter()
            .map(|part| {
                let rows = sample.chunks_exact(self.dimension);
                let points: Vec<f32> =
                    rows.flat_map(|row| &row[part * width..(part + 1) * width]).copied().collect();
                let mut random = Random(seed ^ (part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                (0..self.redos.max(1))
                    .map(|_| self.lloyd(&points, width, &mut random))
                    .min_by(|a, b| a.1.total_cmp(&b.1))
                    .map(|(centroids, _)| centroids)
                    .unwrap_or_default()
            })
            .collect();
        parts.concat()
    }

    /// One run from random points; the centroids and their loss.
    fn lloyd(&self, points: &[f32], width: usize, random: &mut Random) -> (Vec<f32>, f64) {
        let mut centroids = random.pick(points, width, self.codes);
        let mut places = vec![Place::default(); points.len() / width];
        let mut moved = Moved { most: f32::INFINITY };
        let mut loss = f64::MAX;
        for _ in 0..self.max_iters.max(1) {
            let (sums, counts, now) = assign(points, width, &centroids, &mut places, moved);
            let next = means(&sums, &counts, &centroids, width, random);
            moved = Moved::between(&centroids, &next, width);
            centroids = next;
            let settled = (loss - now).abs() <= TOLERANCE * now;
            loss = now;
            if settled {
                break;
            }
        }
        (centroids, loss)
    }
}

/// Where a point is: its centroid, and how far any other is at least.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    code: u32,
    others: f32,
}

/// How far the centroids have moved at most.
#[derive(Debug, Clone, Copy)]
struct Moved {
    most: f32,
}

impl Moved {
    fn between(before: &[f32], after: &[f32], width: usize) -> Self {
        let pairs = before.chunks_exact(width).zip(after.chunks_exact(width));
        Self { most: pairs.map(|(a, b)| square(a, b).sqrt()).fold(0.0, f32::max) }
    }
}

#[inline(always)]
fn square(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0f32;
    for i in 0..a.len().min(b.len()) {
        let difference = a[i] - b[i];
        sum = difference.mul_add(difference, sum);
    }
    sum
}

/// Each point to its nearest centroid: the sums and counts of the clusters, and the sum of the distances.
fn assign(
    points: &[f32],
    width: usize,
    centroids: &[f32],
    places: &mut [Place],
    moved: Moved,
) -> (Vec<f64>, Vec<u32>, f64) {
    let codes = centroids.len() / width;
    let targets = Targets::new(centroids, width);
    let apart = targets.apart(centroids);
    // A batch of points per piece of work.
    const BATCH: usize = 8192;
    points
        .par_chunks(BATCH * width)
        .zip(places.par_chunks_mut(BATCH))
        .map(|(batch, places)| {
            let (mut sums, mut counts) = (vec![0f64; centroids.len()], vec![0u32; codes]);
            let mut loss = 0f64;
            for (point, place) in batch.chunks_exact(width).zip(places) {
                let code = place.code as usize;
                let mut distance = square(point, &centroids[code * width..(code + 1) * width]);
                place.others -= moved.most;
                // Bounds are of distances, not of their squares; NaN, of the first time, passes neither.
                let bound = place.others.max(apart[code]);
                if !(moved.most.is_finite() && distance.sqrt() < bound) {
                    let (nearest, others);
                    (nearest, distance, others) = targets.nearest(point);
                    *place = Place { code: nearest as u32, others: others.sqrt() };
                }
                loss += f64::from(distance);
                let code = place.code as usize;
                counts[code] += 1;
                let sum = &mut sums[code * width..(code + 1) * width];
                for i in 0..width {
                    sum[i] += f64::from(point[i]);
                }
            }
            (sums, counts, loss)
        })
        .reduce(
            || (vec![0f64; centroids.len()], vec![0u32; codes], 0f64),
            |(mut sums, mut counts, loss), (s, c, l)| {
                sums.iter_mut().zip(s).for_each(|(sum, s)| *sum += s);
                counts.iter_mut().zip(c).for_each(|(count, c)| *count += c);
                (sums, counts, loss + l)
            },
        )
}

/// Centroids side by side in a register.
const LANES: usize = 16;

/// Centroids in blocks of [`LANES`], each block by dimension: a point is compared with a block at a time.
struct Targets {
    blocks: Vec<[f32; LANES]>,
    width: usize,
}

impl Targets {
    fn new(centroids: &[f32], width: usize) -> Self {
        let codes = centroids.len() / width;
        let mut blocks = Vec::with_capacity(codes.div_ceil(LANES) * width);
        for first in (0..codes).step_by(LANES) {
            for at in 0..width {
                let mut lanes = [f32::INFINITY; LANES];
                for (lane, code) in (first..codes.min(first + LANES)).enumerate() {
                    lanes[lane] = centroids[code * width + at];
                }
                blocks.push(lanes);
            }
        }
        Self { blocks, width }
    }

    /// Half of each centroid's distance to the nearest other: a point that is nearer has none nearer.
    fn apart(&self, centroids: &[f32]) -> Vec<f32> {
        // The nearest of a centroid is itself, and the next one another.
        let next = |centroid| self.nearest(centroid).2.sqrt() / 2.0;
        centroids.chunks_exact(self.width).map(next).collect()
    }

    /// The nearest centroid, of several the first, the square of its distance, and that of the next one's.
    /// In loops that the compiler turns into vector instructions.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn nearest(&self, point: &[f32]) -> (usize, f32, f32) {
        // Places as floats, which are chosen by the same mask as the distances.
        let (mut least, mut place) = ([f32::INFINITY; LANES], [0f32; LANES]);
        let mut next = [f32::INFINITY; LANES];
        let mut at = 0f32;
        for block in self.blocks.chunks_exact(self.width) {
            let mut distances = [0f32; LANES];
            for i in 0..block.len() {
                let (lanes, value) = (&block[i], point[i]);
                for lane in 0..LANES {
                    let difference = value - lanes[lane];
                    distances[lane] = difference.mul_add(difference, distances[lane]);
                }
            }
            for lane in 0..LANES {
                let farther =
                    if distances[lane] < least[lane] { least[lane] } else { distances[lane] };
                next[lane] = if farther < next[lane] { farther } else { next[lane] };
            }
            for lane in 0..LANES {
                place[lane] = if distances[lane] < least[lane] { at } else { place[lane] };
            }
            for lane in 0..LANES {
                least[lane] =
                    if distances[lane] < least[lane] { distances[lane] } else { least[lane] };
            }
            at += 1.0;
        }
        let mut best = 0;
        let code = |lane: usize| place[lane] as usize * LANES + lane;
        for lane in 1..LANES {
            let nearer = least[lane] < least[best];
            if nearer || (least[lane] == least[best] && code(lane) < code(best)) {
                best = lane;
            }
        }
        let mut second = next[best];
        for lane in (0..LANES).filter(|lane| *lane != best) {
            second = second.min(least[lane]);
        }
        (code(best), least[best], second)
    }
}

/// The clusters' means. An empty cluster takes half of a large one.
fn means(
    sums: &[f64],
    counts: &[u32],
    before: &[f32],
    width: usize,
    random: &mut Random,
) -> Vec<f32> {
    let mut centroids = before.to_vec();
    for (code, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let at = code * width..(code + 1) * width;
        for (centroid, sum) in centroids[at.clone()].iter_mut().zip(&sums[at]) {
            *centroid = (sum / f64::from(*count)) as f32;
        }
    }
    let total: u64 = counts.iter().map(|c| u64::from(*c)).sum();
    let mut left = counts.to_vec();
    for empty in (0..counts.len()).filter(|code| counts[*code] == 0) {
        // Drawn by the points in them; the larger the likelier.
        let mut at = random.below(total.max(1));
        let split = left.iter().position(|count| {
            let here = at < u64::from(*count);
            at = at.saturating_sub(u64::from(*count));
            here
        });
        let Some(split) = split.filter(|split| left[*split] > 1) else { continue };
        left[empty] = left[split] / 2;
        left[split] -= left[empty];
        for i in 0..width {
            let (value, sign) = (centroids[split * width + i], if i % 2 == 0 { 1.0 } else { -1.0 });
            centroids[empty * width + i] = value * (1.0 + sign * SPLIT);
            centroids[split * width + i] = value * (1.0 - sign * SPLIT);
        }
    }
    centroids
}

/// SplitMix64, by Sebastiano Vigna.
pub(super) struct Random(u64);

impl Random {
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().0)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// So many of the points, none twice.
    fn pick(&mut self, points: &[f32], width: usize, count: usize) -> Vec<f32> {
        let mut order: Vec<usize> = (0..points.len() / width).collect();
        let count = count.min(order.len());
        for i in 0..count {
            let other = i + self.below((order.len() - i) as u64) as usize;
            order.swap(i, other);
        }
        order[..count]
            .iter()
            .flat_map(|at| &points[at * width..(at + 1) * width])
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_centroid_is_found_wherever_it_is() {
        for codes in [1, 15, 16, 17, 256] {
            for wanted in 0..codes {
                let centroids: Vec<f32> = (0..codes * 3).map(|i| (i / 3) as f32 * 2.0).collect();
                let targets = Targets::new(&centroids, 3);
                let at = wanted as f32 * 2.0 + 0.25;
                let next = match (codes, wanted) {
                    (1, _) => f32::INFINITY,
                    (_, wanted) if wanted + 1 == codes => 3.0 * 2.25 * 2.25,
                    _ => 3.0 * 1.75 * 1.75,
                };
                assert_eq!(targets.nearest(&[at, at, at]), (wanted, 0.1875, next));
            }
        }
        let equal = Targets::new(&[1.0; 40], 1).nearest(&[1.0]);
        assert_eq!(equal, (0, 0.0, 0.0), "of equals the first");
    }

    #[test]
    fn clusters_are_found_and_no_code_is_lost() {
        // 16 points far apart, in two sub-vectors, 40 vectors around each.
        let mut random = Random(7);
        let mut noise = || (random.below(1000) as f32 / 1000.0 - 0.5) * 0.1;
        let mut sample = Vec::new();
        for i in 0..640 {
            let (a, b) = ((i % 16) as f32 * 10.0, ((i / 16) % 16) as f32 * 10.0);
            sample.extend([a + noise(), a + noise(), b + noise(), b + noise()]);
        }
        let codebook =
            Codebook { dimension: 4, num_sub_vectors: 2, codes: 16, max_iters: 50, redos: 4 };
        let trained = codebook.train(&sample, 1);
        assert_eq!(trained.len(), 2 * 16 * 2);
        let points: Vec<f32> = sample.chunks(4).flat_map(|row| &row[..2]).copied().collect();
        let mut places = vec![Place::default(); 640];
        let first = Moved { most: f32::INFINITY };
        let (_, counts, loss) = assign(&points, 2, &trained[..32], &mut places, first);
        assert!(counts.iter().filter(|c| **c > 0).count() >= 14, "{counts:?}");
        assert!(loss / 640.0 < 20.0, "{loss}");
        assert_eq!(trained, codebook.train(&sample, 1), "the same seed gives the same codes");
    }

    #[test]
    fn bounds_change_nothing_of_where_points_go() {
        let mut random = Random(3);
        let points: Vec<f32> = (0..4000).map(|_| random.below(1000) as f32 / 100.0).collect();
        let mut centroids = random.pick(&points, 4, 32);
        let mut places = vec![Place::default(); 1000];
        let mut moved = Moved { most: f32::INFINITY };
        for _ in 0..20 {
            let bounded = assign(&points, 4, &centroids, &mut places, moved);
            let mut anew = vec![Place::default(); 1000];
            let plain = assign(&points, 4, &centroids, &mut anew, Moved { most: f32::INFINITY });
            assert_eq!((&bounded.0, &bounded.1), (&plain.0, &plain.1));
            let next = means(&bounded.0, &bounded.1, &centroids, 4, &mut random);
            moved = Moved::between(&centroids, &next, 4);
            centroids = next;
        }
    }
}
