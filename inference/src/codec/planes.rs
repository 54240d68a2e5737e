//! Byte planes: the bytes of one significance of many elements, side by side.

/// Elements that are taken apart at a time: one zstd block per plane, and buffers that stay in the cache.
pub(super) const CHUNK: usize = 128 << 10;

/// Byte `which` of every element of `chunk`; with one-byte elements the chunk itself.
pub(super) fn gather<'a>(chunk: &'a [u8], size: usize, which: usize, plane: &'a mut Vec<u8>) -> &'a [u8] {
    if size == 1 {
        return chunk;
    }
    plane.clear();
    match size {
        2 => plane.extend(chunk.as_chunks::<2>().0.iter().map(|element| element[which])),
        4 => plane.extend(chunk.as_chunks::<4>().0.iter().map(|element| element[which])),
        _ => plane.extend(chunk.chunks_exact(size).map(|element| element[which])),
    }
    plane
}

/// Puts byte `which` of every element back.
pub(super) fn scatter(plane: &[u8], size: usize, which: usize, chunk: &mut [u8]) {
    match size {
        1 => chunk.copy_from_slice(plane),
        2 => chunk
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(plane)
            .for_each(|(element, byte)| element[which] = *byte),
        4 => chunk
            .as_chunks_mut::<4>()
            .0
            .iter_mut()
            .zip(plane)
            .for_each(|(element, byte)| element[which] = *byte),
        _ => chunk.chunks_exact_mut(size).zip(plane).for_each(|(element, byte)| element[which] = *byte),
    }
}
