//! Elements whose bits are all zero are left out: what a ReLU gives has many.
//!
//! Packed bytes are, for every [`CHUNK`] elements, a bitmap (64-bit little-endian words, one bit per element, set for
//! those that are kept) and the kept elements. Only elements of 2, 4 and 8 bytes are packed. Negative zeros and NaNs
//! are elements like others and survive bit for bit.

use crate::tensor::DType;

/// Elements of one word of the bitmap.
const GROUP: usize = 64;

/// Elements of one bitmap: what is kept of them stays in the fastest cache while it is moved together.
const CHUNK: usize = 1024;

/// Places that a sample looks at, and elements at each.
const PLACES: usize = 64;
const AT_PLACE: usize = 16;

/// Below this share of zeros packing saves less than it is worth.
const LEAST_ZEROS: f64 = 0.2;

/// The part of the bytes that packing would leave, by a sample of about 4 KiB; `None` where there are too few zeros.
pub(super) fn expected_ratio(dtype: DType, bytes: &[u8]) -> Option<f64> {
    let zeros = match dtype.size() {
        2 => zeros(bytes.as_chunks::<2>().0),
        4 => zeros(bytes.as_chunks::<4>().0),
        8 => zeros(bytes.as_chunks::<8>().0),
        _ => return None,
    };
    let map = 1.0 / (8 * dtype.size()) as f64;
    (zeros >= LEAST_ZEROS).then_some(1.0 - zeros + map)
}

/// The share of zeros in a sample.
fn zeros<const N: usize>(elements: &[[u8; N]]) -> f64 {
    let zero = |element: &&[u8; N]| **element == [0; N];
    if elements.len() <= PLACES * AT_PLACE {
        return elements.iter().filter(zero).count() as f64 / elements.len().max(1) as f64;
    }
    let last = elements.len() - AT_PLACE;
    let found: usize = (0..PLACES)
        .map(|place| {
            let start = place * (last / (PLACES - 1)).max(1);
            elements.iter().skip(start.min(last)).take(AT_PLACE).filter(zero).count()
        })
        .sum();
    found as f64 / (PLACES * AT_PLACE) as f64
}

/// Packs a tensor's bytes; `None` where that saves nothing worth having.
pub(super) fn pack(dtype: DType, bytes: &[u8]) -> Option<Vec<u8>> {
    let ratio = expected_ratio(dtype, bytes)?;
    // Some more than the sample says; the vector grows where that is not enough.
    let room = (bytes.len() as f64 * (ratio + 0.05)) as usize + CHUNK / 8;
    let mut packed = Vec::with_capacity(room.min(bytes.len()));
    let smaller = match dtype.size() {
        2 => pack_elements(bytes.as_chunks::<2>().0, &mut packed),
        4 => pack_elements(bytes.as_chunks::<4>().0, &mut packed),
        8 => pack_elements(bytes.as_chunks::<8>().0, &mut packed),
        _ => false,
    };
    smaller.then_some(packed)
}

/// Whether the packed elements are smaller; it stops where they would not be.
fn pack_elements<const N: usize>(elements: &[[u8; N]], packed: &mut Vec<u8>) -> bool {
    let mut kept = [[0; N]; CHUNK];
    for chunk in elements.chunks(CHUNK) {
        let mut maps = [[0; 8]; CHUNK / GROUP];
        let mut count = 0;
        let (groups, rest) = chunk.as_chunks::<GROUP>();
        for (map, group) in maps.iter_mut().zip(groups) {
            *map = keep(group, &mut kept, &mut count).to_le_bytes();
        }
        if !rest.is_empty() {
            let mut filled = [[0; N]; GROUP];
            filled[..rest.len()].copy_from_slice(rest);
            maps[groups.len()] = keep(&filled, &mut kept, &mut count).to_le_bytes();
        }
        let maps = maps[..chunk.len().div_ceil(GROUP)].as_flattened();
        let kept = kept[..count].as_flattened();
        if packed.len() + maps.len() + kept.len() >= elements.len() * N {
            return false;
        }
        packed.extend_from_slice(maps);
        packed.extend_from_slice(kept);
    }
    !elements.is_empty()
}

/// Puts the elements of a group that are not zero behind the `count` that are kept; the bits say which they are.
#[inline(always)]
fn keep<const N: usize>(group: &[[u8; N]; GROUP], kept: &mut [[u8; N]; CHUNK], count: &mut usize) -> u64 {
    let map = bits(group);
    let mut at = *count;
    // The remainders are always the indices themselves: they tell the compiler that no check is needed.
    match map {
        0 => {}
        u64::MAX => {
            kept[at..at + GROUP].copy_from_slice(group);
            at += GROUP;
        }
        _ => {
            let mut left = map;
            while left != 0 {
                kept[at % CHUNK] = group[left.trailing_zeros() as usize % GROUP];
                at += 1;
                left &= left - 1;
            }
        }
    }
    *count = at;
    map
}

/// A bit for every element that is not zero. In parts of 16, of which the compiler makes vector instructions.
#[inline(always)]
fn bits<const N: usize>(group: &[[u8; N]; GROUP]) -> u64 {
    let parts = group.as_chunks::<16>().0.iter().enumerate();
    parts.fold(0, |map, (which, part)| {
        let part = part.iter().enumerate();
        let word = part.fold(0, |word, (bit, element)| word | u32::from(*element != [0; N]) << bit);
        map | u64::from(word) << (16 * which)
    })
}

/// Unpacks into `target`, which is zero all over. The bytes may be hostile.
pub(super) fn unpack(size: usize, packed: &[u8], target: &mut [u8]) -> Result<(), &'static str> {
    match size {
        2 => unpack_elements(packed, target.as_chunks_mut::<2>().0),
        4 => unpack_elements(packed, target.as_chunks_mut::<4>().0),
        8 => unpack_elements(packed, target.as_chunks_mut::<8>().0),
        _ => Err("elements of that size are never packed so"),
    }
}

/// Bytes of the bitmaps of so many bytes: no fewer can unpack to them.
pub(super) fn bitmap_bytes(size: usize, bytes: usize) -> usize {
    (bytes / size).div_ceil(GROUP) * (GROUP / 8)
}

fn unpack_elements<const N: usize>(mut packed: &[u8], target: &mut [[u8; N]]) -> Result<(), &'static str> {
    let mut kept = [[0; N]; CHUNK];
    for chunk in target.chunks_mut(CHUNK) {
        let words = chunk.len().div_ceil(GROUP);
        let (maps, rest) = packed.split_at_checked(words * 8).ok_or("a bitmap is cut off")?;
        let maps = maps.as_chunks::<8>().0;
        let count: usize = maps.iter().map(|map| u64::from_le_bytes(*map).count_ones() as usize).sum();
        let (values, rest) = rest.split_at_checked(count * N).ok_or("elements are cut off")?;
        kept[..count].copy_from_slice(values.as_chunks::<N>().0);
        packed = rest;
        let mut at = 0;
        let (groups, last) = chunk.as_chunks_mut::<GROUP>();
        for (map, group) in maps.iter().zip(groups) {
            place(u64::from_le_bytes(*map), &kept, &mut at, group);
        }
        if !last.is_empty() {
            let map = u64::from_le_bytes(maps[words - 1]);
            if map >> last.len() != 0 {
                return Err("elements follow the last one");
            }
            let mut filled = [[0; N]; GROUP];
            place(map, &kept, &mut at, &mut filled);
            last.copy_from_slice(&filled[..last.len()]);
        }
    }
    if packed.is_empty() { Ok(()) } else { Err("bytes follow the last element") }
}

/// Puts the kept elements from `at` on where the bits say. There are at most [`CHUNK`] of them.
#[inline(always)]
fn place<const N: usize>(map: u64, kept: &[[u8; N]; CHUNK], at: &mut usize, group: &mut [[u8; N]; GROUP]) {
    match map {
        0 => {}
        u64::MAX => {
            group.copy_from_slice(&kept[*at..*at + GROUP]);
            *at += GROUP;
        }
        _ => {
            let (mut left, mut from) = (map, *at);
            while left != 0 {
                group[left.trailing_zeros() as usize % GROUP] = kept[from % CHUNK];
                from += 1;
                left &= left - 1;
            }
            *at = from;
        }
    }
}

#[cfg(test)]
mod tests;
