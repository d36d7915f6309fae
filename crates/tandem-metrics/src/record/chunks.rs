//! When output arrived: eight bytes a chunk, because a run has millions of them.
//!
//! A chunk is packed into one word: its offset from the first chunk of the request (44 bits of
//! nanoseconds, 4.8 hours), its tokens (18 bits, 0 = unknown), its kind and whether it shared a read with
//! an earlier chunk. Larger values saturate.

const TIME_BITS: u32 = 44;
const TOKEN_BITS: u32 = 18;
const MAX_OFFSET: u64 = (1 << TIME_BITS) - 1;
const MAX_TOKENS: u64 = (1 << TOKEN_BITS) - 1;
const REASONING: u64 = 1 << 62;
const CLUMPED: u64 = 1 << 63;

/// What a chunk carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChunkKind {
    /// Part of the answer.
    #[default]
    Content,
    /// Part of the reasoning before the answer (`reasoning_content`).
    Reasoning,
}

/// One non-empty piece of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// When it arrived, ns since the run's origin.
    pub at_ns: u64,
    /// Tokens in it, if known; at least 1.
    pub n_tokens: Option<u32>,
    /// What it carries.
    pub kind: ChunkKind,
    /// Whether it was read together with an earlier chunk, so that its stamp is late by an unknown amount.
    pub clumped: bool,
}

impl Chunk {
    /// A chunk of the answer with an unknown number of tokens, read on its own.
    #[must_use]
    pub const fn content(at_ns: u64) -> Self {
        Chunk { at_ns, n_tokens: None, kind: ChunkKind::Content, clumped: false }
    }
}

/// The chunks of one request in order of arrival.
///
/// Stamps are relative to the first one pushed; a stamp before it counts as equal to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkLog {
    base_ns: u64,
    packed: Vec<u64>,
}

impl ChunkLog {
    /// An empty log.
    #[must_use]
    pub const fn new() -> Self {
        ChunkLog { base_ns: 0, packed: Vec::new() }
    }

    /// An empty log with room for `n` chunks.
    #[must_use]
    pub fn with_capacity(n: usize) -> Self {
        ChunkLog { base_ns: 0, packed: Vec::with_capacity(n) }
    }

    /// Appends a chunk.
    pub fn push(&mut self, chunk: Chunk) {
        if self.packed.is_empty() {
            self.base_ns = chunk.at_ns;
        }
        self.packed.push(pack(chunk, self.base_ns));
    }

    /// Sets the tokens of chunk `index`, for counts that become known after the run.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn set_tokens(&mut self, index: usize, n_tokens: u32) {
        let chunk = Chunk { n_tokens: Some(n_tokens), ..unpack(self.packed[index], self.base_ns) };
        self.packed[index] = pack(chunk, self.base_ns);
    }

    /// Number of chunks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// Whether no output arrived.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packed.is_empty()
    }

    /// Chunk `index`, if there is one.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Chunk> {
        self.packed.get(index).map(|&word| unpack(word, self.base_ns))
    }

    /// The first chunk.
    #[must_use]
    pub fn first(&self) -> Option<Chunk> {
        self.get(0)
    }

    /// The last chunk.
    #[must_use]
    pub fn last(&self) -> Option<Chunk> {
        self.packed.last().map(|&word| unpack(word, self.base_ns))
    }

    /// The first chunk of one kind.
    #[must_use]
    pub fn first_of(&self, kind: ChunkKind) -> Option<Chunk> {
        self.iter().find(|chunk| chunk.kind == kind)
    }

    /// All chunks in order of arrival.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Chunk> + Clone + '_ {
        self.packed.iter().map(|&word| unpack(word, self.base_ns))
    }

    /// Gaps between successive chunks in ns, each with the tokens of the later chunk.
    pub fn gaps(&self) -> impl Iterator<Item = (u64, Option<u32>)> + '_ {
        self.iter().zip(self.iter().skip(1)).map(|(a, b)| (b.at_ns.saturating_sub(a.at_ns), b.n_tokens))
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.packed.capacity() * size_of::<u64>()
    }
}

impl FromIterator<Chunk> for ChunkLog {
    fn from_iter<I: IntoIterator<Item = Chunk>>(chunks: I) -> Self {
        let chunks = chunks.into_iter();
        let mut log = ChunkLog::with_capacity(chunks.size_hint().0);
        chunks.for_each(|chunk| log.push(chunk));
        log
    }
}

fn pack(chunk: Chunk, base_ns: u64) -> u64 {
    let offset = chunk.at_ns.saturating_sub(base_ns).min(MAX_OFFSET);
    let tokens = u64::from(chunk.n_tokens.unwrap_or(0)).min(MAX_TOKENS);
    let mut word = offset | (tokens << TIME_BITS);
    if chunk.kind == ChunkKind::Reasoning {
        word |= REASONING;
    }
    if chunk.clumped {
        word |= CLUMPED;
    }
    word
}

fn unpack(word: u64, base_ns: u64) -> Chunk {
    let tokens = u32::try_from((word >> TIME_BITS) & MAX_TOKENS).expect("the mask leaves 18 bits");
    Chunk {
        at_ns: base_ns + (word & MAX_OFFSET),
        n_tokens: (tokens > 0).then_some(tokens),
        kind: if word & REASONING == 0 { ChunkKind::Content } else { ChunkKind::Reasoning },
        clumped: word & CLUMPED != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_comes_back_as_it_was_pushed() {
        let chunks = [
            Chunk { at_ns: 5_000_000_000, n_tokens: Some(1), kind: ChunkKind::Reasoning, clumped: false },
            Chunk { at_ns: 5_000_000_001, n_tokens: None, kind: ChunkKind::Content, clumped: true },
            Chunk { at_ns: 17_000_000_000_000, n_tokens: Some(262_143), kind: ChunkKind::Reasoning, clumped: true },
        ];
        let log: ChunkLog = chunks.into_iter().collect();
        assert_eq!(log.iter().collect::<Vec<_>>(), chunks);
        assert_eq!(log.first_of(ChunkKind::Content), Some(chunks[1]));
        assert_eq!(log.last(), Some(chunks[2]));
        assert_eq!(log.gaps().next(), Some((1, None)));
    }

    #[test]
    fn values_that_do_not_fit_saturate_and_disturb_nothing_else() {
        let log: ChunkLog = [
            Chunk::content(100),
            Chunk { at_ns: u64::MAX, n_tokens: Some(u32::MAX), kind: ChunkKind::Content, clumped: false },
            Chunk::content(1),
        ]
        .into_iter()
        .collect();
        let second = log.get(1).unwrap();
        assert_eq!((second.at_ns, second.n_tokens, second.kind), (100 + MAX_OFFSET, Some(262_143), ChunkKind::Content));
        assert_eq!(log.get(2).unwrap().at_ns, 100);
    }

    #[test]
    fn tokens_can_be_set_after_the_run() {
        let mut log: ChunkLog = [Chunk::content(10), Chunk { clumped: true, ..Chunk::content(20) }].into_iter().collect();
        log.set_tokens(1, 7);
        assert_eq!(log.get(1), Some(Chunk { at_ns: 20, n_tokens: Some(7), kind: ChunkKind::Content, clumped: true }));
    }

    #[test]
    fn a_chunk_takes_eight_bytes() {
        let mut log = ChunkLog::with_capacity(1024);
        (0..1024).for_each(|i| log.push(Chunk::content(i)));
        assert_eq!(log.heap_bytes(), 8192);
    }
}
