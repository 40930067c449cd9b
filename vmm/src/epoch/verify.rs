//! A point read whole, and held against every hash it has.

use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::index::ChunkRecord;
use super::layer::ZEROES;
use super::point::{Layer, Point, PointError};
use super::{CHUNK_BYTES, CHUNK_PAGES, Digest, Index, PAGE_BYTES, Presence, folder};

/// Threads that read and hash: more gain nothing where one disk is read.
const THREADS_MAX: usize = 8;
/// Chunks that are worth a thread.
const CHUNKS_PER_THREAD_MIN: usize = 8;

impl Point {
    /// Reads every page of every layer, and the holes between them. A plain copy, which has no index, is held against
    /// the digest of the one it must have.
    ///
    /// # Errors
    /// A file that cannot be read, or is not as it was written: the first that is found.
    pub fn verify_all(&self) -> Result<(), PointError> {
        self.layers().iter().try_for_each(|layer| match &layer.index {
            Some((index, _)) => self.verify_layer(layer, index),
            None => self.rebuild_index(layer).map(drop),
        })?;
        self.check_sample()
    }

    fn verify_layer(&self, layer: &Layer, index: &Index) -> Result<(), PointError> {
        let mut chunks = self.chunks_with_data(layer)?;
        chunks.extend(index.records().iter().map(|record| record.chunk));
        chunks.sort_unstable();
        chunks.dedup();
        in_parallel(&chunks, |chunk, buffer| {
            let record = index.record(chunk);
            record.map_or(Ok(()), |record| layer.read_record(record, buffer))?;
            let mut absent = Presence::NONE;
            (0..self.chunk_bytes(chunk) / PAGE_BYTES).for_each(|page| absent.insert(page));
            let absent = absent.without(&record.map_or(Presence::NONE, |record| record.present));
            absent.runs().try_for_each(|run| check_hole(layer, chunk * CHUNK_BYTES, run, buffer))
        })
    }

    /// Makes the index anew that a full point's memory file has, and holds its digest against the state file's.
    pub(super) fn rebuild_index(&self, layer: &Layer) -> Result<Index, PointError> {
        let records = Mutex::new(Vec::new());
        in_parallel(&self.chunks_with_data(layer)?, |chunk, buffer| {
            self.read_raw(layer, chunk, buffer)?;
            let present = not_zero(buffer);
            if !present.is_empty() {
                let record = ChunkRecord { chunk, present, digest: digest(buffer, &present) };
                records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            }
            Ok(())
        })?;
        let mut records = records.into_inner().unwrap_or_else(PoisonError::into_inner);
        records.sort_unstable_by_key(|record| record.chunk);
        let index = Index::new(layer.id, None, self.memory_bytes(), records)
            .map_err(|source| PointError::Index { path: layer.path(), source })?;
        if index.encode().1 == self.index_digest() {
            Ok(index)
        } else {
            Err(PointError::OtherMemory { path: layer.path() })
        }
    }

    /// The chunks of which the file has anything but a hole.
    fn chunks_with_data(&self, layer: &Layer) -> Result<Vec<u64>, PointError> {
        let mut chunks = Vec::new();
        let mut from = 0;
        while from < self.memory_bytes() {
            let data = folder::next_data(&layer.memory, from);
            let Some(data) = data.map_err(|source| PointError::read(layer.path(), source))? else { break };
            chunks.push(data / CHUNK_BYTES);
            from = (data / CHUNK_BYTES + 1) * CHUNK_BYTES;
        }
        Ok(chunks)
    }

    /// Reads a chunk of a layer's file as it is.
    fn read_raw(&self, layer: &Layer, chunk: u64, buffer: &mut Vec<u8>) -> Result<(), PointError> {
        buffer.resize(usize::try_from(self.chunk_bytes(chunk)).expect("no more than a chunk"), 0);
        let read = layer.memory.read_exact_at(buffer, chunk * CHUNK_BYTES);
        read.map_err(|source| PointError::read(layer.path(), source))
    }
}

/// Holds that pages of a chunk are zeroes, and reads them only where the file does not say so.
fn check_hole(layer: &Layer, chunk_at: u64, run: (u64, u64), buffer: &mut Vec<u8>) -> Result<(), PointError> {
    let failed = |source| PointError::read(layer.path(), source);
    let (start, end) = (chunk_at + run.0 * PAGE_BYTES, chunk_at + (run.0 + run.1) * PAGE_BYTES);
    if folder::next_data(&layer.memory, start).map_err(failed)?.is_none_or(|data| data >= end) {
        return Ok(());
    }
    buffer.resize(usize::try_from(end - start).expect("no more than a chunk"), 0);
    layer.memory.read_exact_at(buffer, start).map_err(failed)?;
    match not_zero(buffer).runs().next() {
        None => Ok(()),
        Some((page, _)) => Err(PointError::Stray { path: layer.path(), offset: start + page * PAGE_BYTES }),
    }
}

/// Runs `check` on every chunk, each thread with a buffer of its own. An error ends it.
pub(super) fn in_parallel(
    chunks: &[u64],
    check: impl Fn(u64, &mut Vec<u8>) -> Result<(), PointError> + Sync,
) -> Result<(), PointError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = Vec::new();
        while let Some(&chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            check(chunk, &mut buffer).inspect_err(|_| next.store(chunks.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let others = cpus.min(THREADS_MAX).min(chunks.len() / CHUNKS_PER_THREAD_MIN).saturating_sub(1);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..others).map(|_| scope.spawn(work)).collect();
        let own = work();
        threads.into_iter().map(|thread| thread.join().expect("a panic ends the process")).fold(own, Result::and)
    })
}

fn page_of(chunk: &[u8], run: (u64, u64)) -> &[u8] {
    let at = |page: u64| usize::try_from(page * PAGE_BYTES).expect("inside the chunk");
    &chunk[at(run.0)..at(run.0 + run.1)]
}

fn not_zero(chunk: &[u8]) -> Presence {
    let mut present = Presence::NONE;
    let pages = (0..CHUNK_PAGES).zip(chunk.chunks_exact(ZEROES.len()));
    pages.filter(|(_, bytes)| *bytes != ZEROES).for_each(|(page, _)| present.insert(page));
    present
}

fn digest(chunk: &[u8], present: &Presence) -> Digest {
    let mut hasher = blake3::Hasher::new();
    present.runs().for_each(|run| {
        hasher.update(page_of(chunk, run));
    });
    Digest::from(&hasher)
}
