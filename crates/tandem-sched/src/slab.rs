//! Sequences in reusable slots; a key of a removed sequence finds nothing, even when its slot is used again.

use crate::sequence::Sequence;

/// Names one sequence for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    sequence: Option<Sequence>,
}

/// Slots of sequences.
#[derive(Debug, Default)]
pub(crate) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slab {
    pub(crate) fn insert(&mut self, sequence: Sequence) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 requests are in one worker")
        });
        let slot = &mut self.slots[index as usize];
        slot.sequence = Some(sequence);
        Key { index, generation: slot.generation }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Sequence> {
        let slot = self.slots.get_mut(key.index as usize).filter(|s| s.generation == key.generation)?;
        let sequence = slot.sequence.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(sequence)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Sequence> {
        self.slots.get(key.index as usize).filter(|s| s.generation == key.generation)?.sequence.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Sequence> {
        self.slots.get_mut(key.index as usize).filter(|s| s.generation == key.generation)?.sequence.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.slots.iter().filter_map(|s| s.sequence.as_ref())
    }
}
