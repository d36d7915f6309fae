//! Safetensors files: one file, shards with an index, or bytes inside the binary.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process could change it")]

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::f16;
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use tandem_plan::ModelConfig;

use super::TensorSource;
use super::tensor::{Tensor, TensorData};
use crate::engine::EngineError;

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

struct Shard {
    path: String,
    bytes: Bytes,
    /// Length of the size field and the JSON header; tensor data starts there.
    data_start: usize,
    metadata: safetensors::tensor::Metadata,
}

/// Tensors of one or several safetensors files.
pub struct SafetensorsSource {
    origin: String,
    shards: Vec<Shard>,
    /// Tensor name to shard index.
    by_name: HashMap<String, usize>,
    block: Option<[usize; 2]>,
}

impl std::fmt::Debug for SafetensorsSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SafetensorsSource").field("origin", &self.origin).field("tensors", &self.by_name.len()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

fn checkpoint_error(path: &str, reason: impl Into<String>) -> EngineError {
    EngineError::Checkpoint { path: path.to_owned(), reason: reason.into() }
}

fn io_error(path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Io { path: path.display().to_string(), source }
}

/// Refuses a directory whose config.json is not the model that the plan describes.
pub(super) fn check_config(dir: &str, config: &ModelConfig) -> Result<(), EngineError> {
    let path = Path::new(dir).join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| io_error(&path, e))?;
    let found = ModelConfig::from_json(&text).map_err(|e| {
        let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
        checkpoint_error(&path.display().to_string(), format!("{e}{cause}"))
    })?;
    if &found != config {
        return Err(checkpoint_error(&path.display().to_string(), "is not the model of the plan (was it changed after planning?)"));
    }
    Ok(())
}

impl SafetensorsSource {
    /// Opens `model.safetensors.index.json` with its shards, or `model.safetensors`, in `dir`.
    /// `block` is the config's `weight_block_size`; FP8 tensors need it.
    ///
    /// # Errors
    /// As [`open`](super::open).
    pub fn open(dir: &str, block: Option<[u32; 2]>) -> Result<Self, EngineError> {
        let mut source = Self::empty(dir, block)?;
        let dir_path = Path::new(dir);
        let index_path = dir_path.join("model.safetensors.index.json");
        if index_path.is_file() {
            source.open_index(dir_path, &index_path)?;
        } else {
            let file = dir_path.join("model.safetensors");
            if !file.is_file() {
                return Err(checkpoint_error(dir, "holds neither model.safetensors.index.json nor model.safetensors"));
            }
            source.add_all(map_file(&file)?);
        }
        Ok(source)
    }

    /// Reads tensors from bytes that live as long as the program.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when they are no safetensors file.
    pub fn from_static(bytes: &'static [u8], origin: &str, block: Option<[u32; 2]>) -> Result<Self, EngineError> {
        let mut source = Self::empty(origin, block)?;
        source.add_all(parse(origin.to_owned(), Bytes::Static(bytes))?);
        Ok(source)
    }

    fn empty(origin: &str, block: Option<[u32; 2]>) -> Result<Self, EngineError> {
        let block = block.map(|b| b.map(|n| n as usize));
        if block.is_some_and(|b| b.contains(&0)) {
            return Err(checkpoint_error(origin, "weight_block_size holds a 0"));
        }
        Ok(Self { origin: origin.to_owned(), shards: Vec::new(), by_name: HashMap::new(), block })
    }

    fn add_all(&mut self, shard: Shard) {
        let index = self.shards.len();
        self.by_name.extend(shard.metadata.tensors().into_keys().map(|name| (name, index)));
        self.shards.push(shard);
    }

    fn open_index(&mut self, dir: &Path, index_path: &Path) -> Result<(), EngineError> {
        let text = std::fs::read_to_string(index_path).map_err(|e| io_error(index_path, e))?;
        let index: Index = serde_json::from_str(&text).map_err(|e| checkpoint_error(&index_path.display().to_string(), e.to_string()))?;
        let mut by_file: HashMap<String, usize> = HashMap::new();
        let mut names: Vec<(String, String)> = index.weight_map.into_iter().collect();
        names.sort();
        for (name, file) in names {
            let shard = match by_file.get(&file) {
                Some(&shard) => shard,
                None => {
                    self.shards.push(map_file(&dir.join(&file))?);
                    by_file.insert(file, self.shards.len() - 1);
                    self.shards.len() - 1
                }
            };
            if self.shards[shard].metadata.info(&name).is_none() {
                let path = self.shards[shard].path.clone();
                return Err(checkpoint_error(&path, format!("lacks tensor {name}, which the index places there")));
            }
            self.by_name.insert(name, shard);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<(&Shard, TensorView<'_>)> {
        let shard = &self.shards[*self.by_name.get(name)?];
        let info = shard.metadata.info(name)?;
        let data = &shard.bytes.get()[shard.data_start + info.data_offsets.0..shard.data_start + info.data_offsets.1];
        let view = TensorView::new(info.dtype, info.shape.clone(), data).expect("the header was validated when the file was opened");
        Some((shard, view))
    }

    /// The block scales of FP8 tensor `name`, checked against its shape.
    fn scales(&self, name: &str, path: &str, rows: usize, cols: usize) -> Result<(Vec<f32>, [usize; 2]), EngineError> {
        let block = self
            .block
            .ok_or_else(|| checkpoint_error(path, format!("tensor {name} is F8_E4M3 but config.json has no quantization_config")))?;
        let scale_name = format!("{name}_scale_inv");
        let (shard, view) = self
            .find(&scale_name)
            .ok_or_else(|| checkpoint_error(path, format!("tensor {name} is F8_E4M3 but {scale_name} is missing")))?;
        let expected = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        if view.shape() != expected {
            let reason =
                format!("tensor {scale_name} has shape {:?}, expected {expected:?} for {}x{} blocks", view.shape(), block[0], block[1]);
            return Err(checkpoint_error(&shard.path, reason));
        }
        let scales = match view.dtype() {
            Dtype::F32 => words(view.data(), f32::from_le_bytes),
            Dtype::BF16 => words(view.data(), |b: [u8; 2]| half::bf16::from_le_bytes(b).to_f32()),
            other => return Err(checkpoint_error(&shard.path, format!("tensor {scale_name} has dtype {other:?}, expected F32"))),
        };
        if let Some(bad) = scales.iter().find(|s| !s.is_finite()) {
            return Err(checkpoint_error(&shard.path, format!("tensor {scale_name} holds the scale {bad}")));
        }
        Ok((scales, block))
    }
}

impl TensorSource for SafetensorsSource {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let (shard, view) = self.find(name).ok_or_else(|| checkpoint_error(&self.origin, format!("tensor {name} is missing")))?;
        if view.shape() != shape {
            return Err(checkpoint_error(&shard.path, format!("tensor {name} has shape {:?}, expected {shape:?}", view.shape())));
        }
        let (rows, cols) = match *shape {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => return Err(checkpoint_error(&shard.path, format!("tensor {name} has {} dimensions", shape.len()))),
        };
        let data = match view.dtype() {
            Dtype::F32 => TensorData::F32(words(view.data(), f32::from_le_bytes)),
            Dtype::F16 => TensorData::F32(words(view.data(), |b: [u8; 2]| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => TensorData::Bf16(words(view.data(), u16::from_le_bytes)),
            Dtype::F8_E4M3 => {
                let q = view.data().to_vec();
                if q.iter().any(|b| b & 0x7f == 0x7f) {
                    return Err(checkpoint_error(&shard.path, format!("tensor {name} holds NaN")));
                }
                let (scales, block) = self.scales(name, &shard.path, rows, cols)?;
                TensorData::Fp8 { q, scales, block }
            }
            other => {
                return Err(checkpoint_error(
                    &shard.path,
                    format!("tensor {name} has dtype {other:?}, expected F32, F16, BF16 or F8_E4M3"),
                ));
            }
        };
        Ok(Tensor { rows, cols, data })
    }
}

fn words<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect()
}

fn map_file(path: &PathBuf) -> Result<Shard, EngineError> {
    let file = File::open(path).map_err(|e| io_error(path, e))?;
    // SAFETY: the map is read only while the engine is built. If another process truncates the file meanwhile
    // the read faults; that a checkpoint is not written to while it is being loaded is the user's side of the bargain.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| io_error(path, e))?;
    parse(path.display().to_string(), Bytes::Mapped(map))
}

fn parse(path: String, bytes: Bytes) -> Result<Shard, EngineError> {
    let whole = bytes.get();
    let (header, metadata) =
        SafeTensors::read_metadata(whole).map_err(|e| checkpoint_error(&path, format!("is no safetensors file: {e}")))?;
    let data_start = 8 + header;
    let expected = data_start + metadata.data_len();
    if whole.len() != expected {
        let reason = format!("is truncated or overlong: {} bytes, its header describes {expected}", whole.len());
        return Err(checkpoint_error(&path, reason));
    }
    Ok(Shard { path, bytes, data_start, metadata })
}
