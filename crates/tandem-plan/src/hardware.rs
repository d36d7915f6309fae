//! Descriptions of the devices that ranks run on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// GPU types, and `cpu` for the embedded engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum GpuType {
    /// Grace-Blackwell, four GPUs a node.
    Gb200,
    /// Blackwell, eight GPUs a node.
    B200,
    /// Hopper, eight GPUs a node.
    H100,
    /// Hopper with more and faster memory, eight GPUs a node.
    H200,
    /// Blackwell Ultra, eight GPUs a node.
    B300,
    /// Grace-Blackwell Ultra, four GPUs a node.
    Gb300,
    /// No GPU: the embedded engine on the host's cores.
    Cpu,
    /// A GPU of the user's own.
    Own(OwnGpu),
}

/// A GPU that does not ship, written `NAME:LIKE`: its figures come from the user's hardware table, defaults of recipes and rules of the
/// engine are those of the type LIKE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnGpu {
    text: [u8; OwnGpu::MAX_LEN],
    len: u8,
    colon: u8,
}

impl OwnGpu {
    /// Bytes of `NAME:LIKE`, at most.
    const MAX_LEN: usize = 32;

    /// Of a lower-case text.
    fn parse(text: &str) -> Option<Self> {
        let (name, like) = text.split_once(':')?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        let is_free = !GpuType::ALL.iter().any(|g| g.name() == name);
        let is_known = GpuType::ALL.iter().any(|g| *g != GpuType::Cpu && g.name() == like);
        if name.is_empty() || !name.chars().all(is_plain) || !is_free || !is_known || text.len() > OwnGpu::MAX_LEN {
            return None;
        }
        let mut bytes = [0; OwnGpu::MAX_LEN];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Some(OwnGpu { text: bytes, len: u8::try_from(text.len()).ok()?, colon: u8::try_from(name.len()).ok()? })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.len)]).expect("made from plain letters")
    }

    fn like(&self) -> GpuType {
        let like = &self.text()[usize::from(self.colon) + 1..];
        GpuType::ALL.into_iter().find(|g| g.name() == like).expect("checked when it was made")
    }
}

impl fmt::Debug for OwnGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl GpuType {
    /// Every type that ships, in the order that help texts list them.
    pub const ALL: [GpuType; 7] =
        [GpuType::Gb200, GpuType::B200, GpuType::H100, GpuType::H200, GpuType::B300, GpuType::Gb300, GpuType::Cpu];

    /// The lower-case name used in files and flags; `NAME:LIKE` of a GPU of the user's own.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            GpuType::Gb200 => "gb200",
            GpuType::B200 => "b200",
            GpuType::H100 => "h100",
            GpuType::H200 => "h200",
            GpuType::B300 => "b300",
            GpuType::Gb300 => "gb300",
            GpuType::Cpu => "cpu",
            GpuType::Own(own) => own.text(),
        }
    }

    /// The name under which a hardware table has it.
    #[must_use]
    pub fn table_name(&self) -> &str {
        match self {
            GpuType::Own(own) => &own.text()[..usize::from(own.colon)],
            _ => self.name(),
        }
    }

    /// The type whose defaults a recipe has for it: itself, unless it is a user's own.
    #[must_use]
    pub fn like(self) -> Self {
        match self {
            GpuType::Own(own) => own.like(),
            _ => self,
        }
    }

    /// The type with a published recipe whose rules hold for it: how servers are split over ranks, which kernels serve experts.
    #[must_use]
    pub fn kin(self) -> Self {
        match self.like() {
            GpuType::H200 => GpuType::H100,
            GpuType::B300 => GpuType::B200,
            GpuType::Gb300 => GpuType::Gb200,
            like => like,
        }
    }

    /// What a node of this type offers; none for `cpu`, whose memory and ranks the user states. Of a user's own the figures of the
    /// type that it is like, until a hardware table says better.
    #[must_use]
    pub fn hardware(self) -> Option<Hardware> {
        let (devices_per_node, device_memory) = match self.like() {
            // Memory as the driver reports it in all.
            GpuType::Gb200 => (4, Bytes::mib(189_471)),
            GpuType::B200 => (8, Bytes::gib(180)),
            GpuType::H100 => (8, Bytes::gib(80)),
            GpuType::H200 => (8, Bytes::mib(143_771)),
            GpuType::B300 => (8, Bytes::mib(275_040)),
            GpuType::Gb300 => (4, Bytes::mib(284_208)),
            GpuType::Cpu | GpuType::Own(_) => return None,
        };
        Some(Hardware { gpu_type: self, devices_per_node, device_memory })
    }
}

impl fmt::Display for GpuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GpuType {
    type Err = String;

    /// Case does not matter, as in the published recipe.
    fn from_str(s: &str) -> Result<Self, String> {
        let lower = s.to_ascii_lowercase();
        let shipped = GpuType::ALL.into_iter().find(|g| g.name() == lower);
        shipped.or_else(|| OwnGpu::parse(&lower).map(GpuType::Own)).ok_or_else(|| {
            let names: Vec<&str> = GpuType::ALL.iter().map(GpuType::name).collect();
            format!("unknown GPU type `{s}` (expected {}, or NAME:LIKE of your own, e.g. mine:gb200)", names.join(", "))
        })
    }
}

impl From<GpuType> for String {
    fn from(gpu: GpuType) -> Self {
        gpu.name().to_owned()
    }
}

impl TryFrom<String> for GpuType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// One kind of node: what a rank's device offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    /// The GPU type.
    pub gpu_type: GpuType,
    /// Devices of one node.
    pub devices_per_node: u32,
    /// Memory of one device. For `cpu` this is what the user states (`--device-memory`).
    pub device_memory: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_of_the_users_own_is_written_name_and_likeness() {
        let own: GpuType = "Rubin:GB300".parse().unwrap();
        assert_eq!((own.name(), own.table_name()), ("rubin:gb300", "rubin"));
        assert_eq!((own.like(), own.kin()), (GpuType::Gb300, GpuType::Gb200));
        assert_eq!(own.hardware().unwrap().device_memory, Bytes::mib(284_208));
        assert_eq!(serde_json::from_str::<GpuType>(&serde_json::to_string(&own).unwrap()).unwrap(), own);
        for wrong in [
            "rubin",
            "rubin:",
            ":h100",
            "rubin:cpu",
            "rubin:rubin",
            "h100:h200",
            "ru bin:h100",
            "a-name-that-is-far-too-long-for-this:h100",
        ] {
            assert!(wrong.parse::<GpuType>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_type_reads_its_own_name() {
        for gpu in GpuType::ALL {
            assert_eq!(gpu.name().parse(), Ok(gpu));
            assert_eq!(serde_json::to_string(&gpu).unwrap(), format!("\"{gpu}\""));
        }
    }
}
