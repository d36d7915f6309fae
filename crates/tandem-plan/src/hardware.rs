//! Descriptions of the devices that ranks run on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// GPU types with published recipes, and `cpu` for the embedded engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuType {
    /// Grace-Blackwell, four GPUs a node.
    Gb200,
    /// Blackwell, eight GPUs a node.
    B200,
    /// Hopper, eight GPUs a node.
    H100,
    /// No GPU: the embedded engine on the host's cores.
    Cpu,
}

impl GpuType {
    /// Every value, in the order that help texts list them.
    pub const ALL: [GpuType; 4] = [GpuType::Gb200, GpuType::B200, GpuType::H100, GpuType::Cpu];

    /// The lower-case name used in files and flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            GpuType::Gb200 => "gb200",
            GpuType::B200 => "b200",
            GpuType::H100 => "h100",
            GpuType::Cpu => "cpu",
        }
    }

    /// What a node of this type offers; none for `cpu`, whose memory and ranks the user states.
    #[must_use]
    pub const fn hardware(self) -> Option<Hardware> {
        let (devices_per_node, device_memory) = match self {
            // Memory as the driver reports it in all (189,471 MiB on GB200, 180 GiB on B200, 80 GiB on H100).
            GpuType::Gb200 => (4, Bytes::mib(189_471)),
            GpuType::B200 => (8, Bytes::gib(180)),
            GpuType::H100 => (8, Bytes::gib(80)),
            GpuType::Cpu => return None,
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
        GpuType::ALL
            .into_iter()
            .find(|g| g.name() == lower)
            .ok_or_else(|| format!("unknown GPU type `{s}` (expected gb200, b200, h100 or cpu)"))
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
