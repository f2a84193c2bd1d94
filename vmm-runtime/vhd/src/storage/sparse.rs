//! What a file holds, without its zeros: cheap to copy, however long it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::fault::Content;
use super::next_data;

/// The length of a piece.
const PIECE: usize = 4096;

static ZEROS: [u8; PIECE] = [0; PIECE];

/// The content of a file. Copies share the pieces that stay the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sparse {
    len: usize,
    /// By number. What is missing is zero, and so is what lies behind the end.
    pieces: BTreeMap<usize, Arc<[u8; PIECE]>>,
}

impl Sparse {
    /// What a file holds, by its holes.
    pub(crate) fn of(file: &File) -> Sparse {
        let len = file.metadata().unwrap().len();
        let mut content = Sparse::default();
        content.set_len(len as usize);
        let (mut at, mut buf) = (0, vec![0; 16 * PIECE]);
        while let Some(data) = next_data(file, at..len).unwrap() {
            at = data.start;
            while at < data.end {
                let buf = &mut buf[..(16 * PIECE).min((data.end - at) as usize)];
                file.read_exact_at(buf, at).unwrap();
                content.write(buf, at as usize);
                at += buf.len() as u64;
            }
        }
        content
    }

    /// Writes it into an empty file.
    pub(crate) fn write_to(&self, file: &File) {
        file.set_len(self.len as u64).unwrap();
        let mut pieces = self.pieces.keys().copied().peekable();
        while let Some(first) = pieces.next() {
            // Neighbours in one go.
            let mut end = first + 1;
            while pieces.next_if_eq(&end).is_some() {
                end += 1;
            }
            let range = first * PIECE..(end * PIECE).min(self.len);
            file.write_all_at(&self.read(range.clone()), range.start as u64)
                .unwrap();
        }
    }

    /// Some of its bytes.
    pub(crate) fn read(&self, range: Range<usize>) -> Vec<u8> {
        assert!(range.end <= self.len);
        let mut bytes = Vec::with_capacity(range.len());
        for (piece, within) in pieces(range) {
            bytes.extend_from_slice(&self.piece(piece)[within]);
        }
        bytes
    }

    /// The pieces in which another one of the same length differs.
    pub(crate) fn differences(&self, other: &Sparse) -> Vec<Range<usize>> {
        assert_eq!(self.len, other.len);
        let either: BTreeSet<usize> = self
            .pieces
            .keys()
            .chain(other.pieces.keys())
            .copied()
            .collect();
        let differs = |piece: &usize| match (self.pieces.get(piece), other.pieces.get(piece)) {
            (Some(one), Some(two)) if Arc::ptr_eq(one, two) => false,
            _ => self.piece(*piece) != other.piece(*piece),
        };
        let differing = either.into_iter().filter(differs);
        let range = |piece: usize| piece * PIECE..((piece + 1) * PIECE).min(self.len);
        differing.map(range).collect()
    }

    fn piece(&self, piece: usize) -> &[u8; PIECE] {
        self.pieces.get(&piece).map_or(&ZEROS, |piece| piece)
    }
}

impl Content for Sparse {
    fn len(&self) -> usize {
        self.len
    }

    fn set_len(&mut self, len: usize) {
        if len < self.len {
            self.pieces.split_off(&len.div_ceil(PIECE));
            let end = len.next_multiple_of(PIECE).min(self.len);
            self.zero(len..end);
        }
        self.len = len;
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        self.len = self.len.max(offset + bytes.len());
        for (piece, within) in pieces(offset..offset + bytes.len()) {
            let from = piece * PIECE + within.start - offset;
            let bytes = &bytes[from..from + within.len()];
            if self.piece(piece)[within.clone()] != *bytes {
                let piece = self.pieces.entry(piece).or_insert_with(|| Arc::new(ZEROS));
                Arc::make_mut(piece)[within].copy_from_slice(bytes);
            }
        }
    }

    fn zero(&mut self, range: Range<usize>) {
        assert!(range.end <= self.len);
        let numbers = range.start / PIECE..range.end.div_ceil(PIECE);
        let there: Vec<usize> = self
            .pieces
            .range(numbers)
            .map(|(piece, _)| *piece)
            .collect();
        for piece in there {
            let start = range.start.saturating_sub(piece * PIECE);
            let end = (range.end - piece * PIECE).min(PIECE);
            if start == 0 && end == PIECE {
                self.pieces.remove(&piece);
            } else if let Some(bytes) = self.pieces.get_mut(&piece) {
                Arc::make_mut(bytes)[start..end].fill(0);
            }
        }
    }
}

/// The pieces of a range by their numbers, and what of each is in it.
fn pieces(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let numbers = match range.is_empty() {
        true => 0..0,
        false => range.start / PIECE..range.end.div_ceil(PIECE),
    };
    numbers.map(move |piece| {
        let start = range.start.saturating_sub(piece * PIECE);
        (piece, start..(range.end - piece * PIECE).min(PIECE))
    })
}

/// As bytes one after the other would have it.
#[test]
fn it_holds_what_a_vector_holds() {
    use crate::image::random::Random;

    let mut random = Random::new(7);
    let (mut sparse, mut plain) = (Sparse::default(), Vec::new());
    let mut before = (sparse.clone(), plain.clone());
    let size = 10 * PIECE as u64;
    for step in 0..3000 {
        match random.below(5) {
            0 => {
                let len = random.below(size) as usize;
                sparse.set_len(len);
                Content::set_len(&mut plain, len);
            }
            1 if !plain.is_empty() => {
                let range = random.range(plain.len() as u64, 3 * PIECE as u64);
                let range = range.start as usize..range.end as usize;
                sparse.zero(range.clone());
                plain.zero(range);
            }
            _ => {
                let range = random.range(size, 3 * PIECE as u64);
                let bytes = match random.below(3) {
                    0 => vec![0; (range.end - range.start) as usize],
                    _ => random.bytes(range.end - range.start),
                };
                sparse.write(&bytes, range.start as usize);
                Content::write(&mut plain, &bytes, range.start as usize);
            }
        }
        assert_eq!(sparse.len(), plain.len(), "step {step}");
        assert!(sparse.read(0..plain.len()) == plain, "step {step}");
        if before.1.len() == plain.len() {
            let differing = before.0.differences(&sparse);
            let expected = (0..plain.len()).step_by(PIECE);
            let expected = expected
                .map(|at| at..(at + PIECE).min(plain.len()))
                .filter(|range| before.1[range.clone()] != plain[range.clone()]);
            assert_eq!(differing, expected.collect::<Vec<_>>(), "step {step}");
        }
        if step % 10 == 0 {
            let file = tempfile::tempfile().unwrap();
            sparse.write_to(&file);
            let read = Sparse::of(&file);
            assert_eq!(read.len(), plain.len());
            assert!(read.differences(&sparse).is_empty(), "step {step}");
        }
        before = (sparse.clone(), plain.clone());
    }
}
