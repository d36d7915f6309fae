//! The paged latent KV cache.
//!
//! A token takes `kv_lora_rank + qk_rope_head_dim` values a layer: the latent after its norm,
//! then the rotated key in half order (first all even members of the pairs, then all odd).
//! Stored as `[layer][block][token][value]`. FP8 is e4m3 without a scale, saturating at ±448,
//! which is what a KV scale of 1 means; the values come out of a norm and are far smaller.

use std::ops::Range;

use half::bf16;
use tandem_plan::KvDtype;

use super::simd::Isa;
use crate::checkpoint::{e4m3_to_f32, f32_to_e4m3};
use crate::engine::KvRead;

#[derive(Debug)]
enum Store {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Fp8(Vec<u8>),
}

/// The cache of all layers.
#[derive(Debug)]
pub(crate) struct Cache {
    store: Store,
    /// Values a token takes in one layer.
    width: usize,
    block_size: usize,
    n_blocks: usize,
    n_layers: usize,
    isa: Isa,
}

impl Cache {
    pub(crate) fn new(dtype: KvDtype, n_layers: usize, n_blocks: usize, block_size: usize, width: usize, isa: Isa) -> Self {
        let n = n_layers * n_blocks * block_size * width;
        let store = match dtype {
            KvDtype::F32 => Store::F32(vec![0.0; n]),
            KvDtype::Bf16 => Store::Bf16(vec![0; n]),
            KvDtype::Fp8 => Store::Fp8(vec![0; n]),
        };
        Self { store, width, block_size, n_blocks, n_layers, isa }
    }

    fn offset(&self, layer: usize, blocks: &[u32], token: usize) -> usize {
        let block = blocks[token / self.block_size] as usize;
        assert!(layer < self.n_layers && block < self.n_blocks, "layer {layer} or block {block} is out of range");
        ((layer * self.n_blocks + block) * self.block_size + token % self.block_size) * self.width
    }

    /// Cuts `tokens` into stretches inside one block: (offset of the first value, tokens).
    fn stretches<'a>(&'a self, layer: usize, blocks: &'a [u32], tokens: Range<usize>) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut at = tokens.start;
        std::iter::from_fn(move || {
            let n = (self.block_size - at % self.block_size).min(tokens.end - at);
            (n > 0).then(|| {
                let offset = self.offset(layer, blocks, at);
                at += n;
                (offset, n)
            })
        })
    }

    /// Stores one token's values, rounded to the cache's format.
    pub(crate) fn write(&mut self, layer: usize, blocks: &[u32], token: usize, values: &[f32]) {
        let offset = self.offset(layer, blocks, token);
        let range = offset..offset + self.width;
        match &mut self.store {
            Store::F32(v) => v[range].copy_from_slice(values),
            Store::Bf16(v) => v[range].iter_mut().zip(values).for_each(|(s, x)| *s = bf16::from_f32(*x).to_bits()),
            Store::Fp8(v) => v[range].iter_mut().zip(values).for_each(|(s, x)| *s = f32_to_e4m3(*x)),
        }
    }

    /// Widens `tokens` of a sequence into rows of `out`, `ld` apart.
    pub(crate) fn load(&self, layer: usize, blocks: &[u32], tokens: Range<usize>, out: &mut [f32], ld: usize) {
        let mut rows = out.chunks_mut(ld);
        for (offset, n) in self.stretches(layer, blocks, tokens) {
            for i in 0..n {
                let range = offset + i * self.width..offset + (i + 1) * self.width;
                let Some(row) = rows.next() else { return };
                let row = &mut row[..self.width];
                match &self.store {
                    Store::F32(v) => row.copy_from_slice(&v[range]),
                    Store::Bf16(v) => self.isa.widen_bf16(&v[range], row),
                    Store::Fp8(v) => self.widen_fp8(&v[range], row),
                }
            }
        }
    }

    fn widen_fp8(&self, codes: &[u8], out: &mut [f32]) {
        let whole = codes.len() / 16 * 16;
        // The vector kernel does not know NaN; a cache that was fed NaN yields large finite values instead.
        self.isa.widen_fp8(&codes[..whole], 1.0, &mut out[..whole]);
        for (o, c) in out[whole..].iter_mut().zip(&codes[whole..]) {
            *o = e4m3_to_f32(*c);
        }
    }

    /// Stores what [`KvRead::kv_read`] packed; `bytes` has the right length.
    pub(crate) fn write_bytes(&mut self, layer: usize, blocks: &[u32], tokens: Range<usize>, bytes: &[u8]) {
        let stretches: Vec<(usize, usize)> = self.stretches(layer, blocks, tokens).collect();
        let mut rest = bytes;
        for (offset, n) in stretches {
            let range = offset..offset + n * self.width;
            let size = self.value_bytes();
            let (now, later) = rest.split_at(range.len() * size);
            rest = later;
            match &mut self.store {
                Store::F32(v) => v[range].iter_mut().zip(now.as_chunks().0).for_each(|(s, b)| *s = f32::from_le_bytes(*b)),
                Store::Bf16(v) => v[range].iter_mut().zip(now.as_chunks().0).for_each(|(s, b)| *s = u16::from_le_bytes(*b)),
                Store::Fp8(v) => v[range].copy_from_slice(now),
            }
        }
    }

    fn value_bytes(&self) -> usize {
        match self.store {
            Store::F32(_) => 4,
            Store::Bf16(_) => 2,
            Store::Fp8(_) => 1,
        }
    }
}

impl KvRead for Cache {
    fn kv_read(&self, layer: usize, blocks: &[u32], tokens: Range<usize>, out: &mut Vec<u8>) {
        out.reserve(tokens.len() * self.width * self.value_bytes());
        for (offset, n) in self.stretches(layer, blocks, tokens) {
            let range = offset..offset + n * self.width;
            match &self.store {
                Store::F32(v) => v[range].iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
                Store::Bf16(v) => v[range].iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
                Store::Fp8(v) => out.extend_from_slice(&v[range]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_move_between_block_sizes_and_formats_round_as_stated() {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8] {
            let width = 21;
            let mut a = Cache::new(dtype, 2, 8, 4, width, Isa::detect());
            let mut b = Cache::new(dtype, 2, 3, 7, width, Isa::detect());
            let (a_blocks, b_blocks) = ([5, 0, 7, 2], [2, 0]);
            let value = |t: usize, i: usize| (t * width + i) as f32 * 0.37 - 40.0;
            for t in 0..13 {
                a.write(1, &a_blocks, t, &(0..width).map(|i| value(t, i)).collect::<Vec<_>>());
            }
            let mut bytes = Vec::new();
            a.kv_read(1, &a_blocks, 0..13, &mut bytes);
            assert_eq!(bytes.len(), 13 * width * usize::try_from(dtype.bytes()).unwrap());
            b.write_bytes(1, &b_blocks, 0..13, &bytes);
            let mut rows = vec![0.0; 5 * 32];
            b.load(1, &b_blocks, 6..11, &mut rows, 32);
            for (t, row) in (6..11).zip(rows.chunks(32)) {
                for (i, got) in row[..width].iter().enumerate() {
                    let want = match dtype {
                        KvDtype::F32 => value(t, i),
                        KvDtype::Bf16 => bf16::from_f32(value(t, i)).to_f32(),
                        KvDtype::Fp8 => e4m3_to_f32(f32_to_e4m3(value(t, i))),
                    };
                    assert_eq!(*got, want);
                }
            }
        }
    }
}
