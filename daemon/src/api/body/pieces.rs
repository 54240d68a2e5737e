//! A body's bytes as they came.

use std::{
    collections::VecDeque,
    io::{self, Read},
    mem,
};

use bytes::{Buf, Bytes, BytesMut};

use super::Room;
use crate::api::error::ApiError;

/// A smaller piece is copied behind others: as it came it would hold its HTTP chunk's frame and its place in the queue,
/// together up to a hundred times its bytes.
const SMALL: usize = 4 << 10;
/// Small pieces are gathered in runs of this length.
const RUN: usize = 64 << 10;

/// A body as the pieces it came in, so that a tensor is copied once: from the pieces into its own memory.
#[derive(Debug, Default)]
pub(in crate::api) struct Pieces {
    pieces: VecDeque<Bytes>,
    /// Small pieces that came after those.
    tail: BytesMut,
    /// Bytes of both.
    len: usize,
    /// Given back on drop.
    room: Room,
}

impl Pieces {
    /// Keeps room in the budget of all bodies until it is dropped itself.
    pub(super) fn hold(&mut self, room: Room) {
        self.room = room;
    }

    /// Takes room for `bytes` more that are made from this body, such as tensors from their text.
    pub(in crate::api) fn make_room(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.room.grow_by(bytes)
    }

    /// Bytes that are left.
    pub(in crate::api) fn len(&self) -> usize {
        self.len
    }

    /// Takes the first `count` bytes as one run; copies only when they lie in several pieces.
    pub(in crate::api) fn take_front(&mut self, count: usize) -> Bytes {
        assert!(count <= self.len, "the caller has checked the length");
        if let Some(first) = self.first()
            && first.len() >= count
        {
            let run = first.split_to(count);
            self.len -= count;
            return run;
        }
        let mut run = vec![0; count];
        self.fill(&mut run);
        run.into()
    }

    /// Moves the first bytes into `target`, which must not be longer than what is left.
    pub(in crate::api) fn fill(&mut self, target: &mut [u8]) {
        assert!(target.len() <= self.len, "the caller has checked the length");
        self.len -= target.len();
        let mut done = 0;
        while done < target.len() {
            let piece = self.first().expect("len counts the bytes of all pieces");
            let count = piece.len().min(target.len() - done);
            piece.copy_to_slice(&mut target[done..done + count]);
            done += count;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    /// Takes the first `count` bytes as they lie.
    pub(in crate::api) fn split_front(&mut self, count: usize) -> Self {
        assert!(count <= self.len, "the caller has checked the length");
        self.len -= count;
        let mut front = Self { len: count, ..Self::default() };
        let mut left = count;
        while left > 0
            && let Some(piece) = self.first()
        {
            let part = piece.split_to(left.min(piece.len()));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            left -= part.len();
            if !part.is_empty() {
                front.pieces.push_back(part);
            }
        }
        front
    }

    /// Takes the first byte.
    pub(in crate::api) fn next_byte(&mut self) -> Option<u8> {
        while let Some(piece) = self.first() {
            let byte = (!piece.is_empty()).then(|| piece.get_u8());
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            if byte.is_some() {
                self.len -= 1;
                return byte;
            }
        }
        None
    }

    /// Takes the first piece, or its first `most` bytes where it is longer.
    pub(in crate::api) fn next_piece(&mut self, most: usize) -> Option<Bytes> {
        let first = self.first()?;
        let piece = match first.len() > most {
            true => first.split_to(most),
            false => self.pieces.pop_front()?,
        };
        self.len -= piece.len();
        Some(piece)
    }

    /// Adds what lies in `more` at the end.
    pub(in crate::api) fn append(&mut self, mut more: Self) {
        more.close_tail();
        for piece in more.pieces {
            self.push(piece);
        }
    }

    /// The first `N` bytes, which stay.
    pub(super) fn front<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = self.pieces.iter().flatten().chain(&self.tail);
        let mut front = [0; N];
        for slot in &mut front {
            *slot = *bytes.next()?;
        }
        Some(front)
    }

    /// Adds a piece at the end.
    pub(in crate::api) fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if piece.len() < SMALL {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= RUN {
                self.close_tail();
            }
        } else {
            self.close_tail();
            self.pieces.push_back(piece);
        }
    }

    fn first(&mut self) -> Option<&mut Bytes> {
        if self.pieces.is_empty() {
            self.close_tail();
        }
        self.pieces.front_mut()
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(mem::take(&mut self.tail).freeze());
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = target.len().min(self.len);
        self.fill(&mut target[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that tell where they belong.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    fn pieces(sizes: &[usize]) -> (Pieces, Vec<u8>) {
        let all = bytes(sizes.iter().sum());
        let (mut pieces, mut at) = (Pieces::default(), 0);
        for size in sizes {
            pieces.push(Bytes::copy_from_slice(&all[at..at + size]));
            at += size;
        }
        (pieces, all)
    }

    #[test]
    fn a_body_is_the_same_in_whatever_pieces_it_comes() {
        let ones = vec![1; 200_000];
        let mixed: Vec<_> = (0..60).map(|i| [1, SMALL - 1, 0, SMALL, 70_000, 17][i % 6]).collect();
        let (huge, one): (&[usize], &[usize]) = (&[300_000], &[1]);
        for sizes in [&ones[..], &mixed, huge, one, &[], &[SMALL, 1], &[1, SMALL], &[0, 0]] {
            for step in [1, 7, SMALL, 65_536, 1 << 20] {
                let (mut whole, all) = pieces(sizes);
                let mut got = Vec::new();
                while whole.len() > 0 {
                    got.extend_from_slice(&whole.take_front(step.min(whole.len())));
                    let mut some = vec![0; step.min(whole.len())];
                    whole.fill(&mut some);
                    got.append(&mut some);
                }
                assert!(got == all, "{} pieces by {step}", sizes.len());
                let (mut whole, all) = pieces(sizes);
                got.clear();
                whole.read_to_end(&mut got).unwrap();
                assert!(got == all, "{} pieces read", sizes.len());
            }
        }
    }

    #[test]
    fn a_body_is_the_same_in_whatever_parts_it_is_taken() {
        let mixed: Vec<_> = (0..60).map(|i| [1, SMALL - 1, 0, SMALL, 70_000, 17][i % 6]).collect();
        for step in [1000, SMALL, 65_536, 1 << 20] {
            let (mut whole, all) = pieces(&mixed);
            assert_eq!(whole.front::<5>().unwrap(), all[..5]);
            let (mut parts, mut got) = (Pieces::default(), Vec::new());
            while whole.len() > 0 {
                got.push(whole.next_byte().unwrap());
                let mut part = whole.split_front(step.min(whole.len()));
                got.extend(part.next_byte());
                parts.append(part);
                while let Some(piece) = parts.next_piece(10_000) {
                    assert!(piece.len() <= 10_000);
                    got.extend_from_slice(&piece);
                }
            }
            assert!(got == all && parts.len() == 0, "by {step}");
        }
        let mut none = Pieces::default();
        assert!(none.front::<1>().is_none() && none.next_byte().is_none() && none.next_piece(1).is_none());
        let (mut one, _) = pieces(&[SMALL]);
        one.take_front(SMALL);
        assert!(one.next_byte().is_none() && one.split_front(0).len() == 0);
    }

    #[test]
    fn small_pieces_cost_little_more_than_their_bytes() {
        for (size, count, runs) in [
            (1, 1 << 20, (1 << 20) / RUN),
            (SMALL - 1, 256, (256 * (SMALL - 1)).div_ceil(RUN)),
            (SMALL, 256, 256),
            (1, 10, 1),
        ] {
            let (mut pieces, _) = pieces(&vec![size; count]);
            assert!(pieces.tail.capacity() <= 2 * RUN);
            pieces.close_tail();
            assert_eq!(pieces.pieces.len(), runs, "{count} pieces of {size}");
        }
        let large = Bytes::from(bytes(SMALL));
        let mut pieces = Pieces::default();
        pieces.push(large.clone());
        assert_eq!(pieces.take_front(SMALL).as_ptr(), large.as_ptr(), "a large piece is not copied");
    }
}
