//! Which rank runs on which device: workers in order, nodes in list order, no device twice.
//!
//! A worker that fits in a node never straddles two; one that needs more starts on a fresh node and fills whole nodes.

use tandem_plan::RankPlan;

/// Nodes of equal size that are filled from the front.
#[derive(Debug)]
pub(crate) struct Nodes {
    devices_per_node: u32,
    node: u32,
    /// Devices of the current node that are taken.
    taken: u32,
}

impl Nodes {
    /// Nodes from number `first` on: those before it are for others.
    pub(crate) fn after(first: u32, devices_per_node: u32) -> Self {
        Nodes { devices_per_node: devices_per_node.max(1), node: first, taken: 0 }
    }

    /// The ranks of the next worker of `world` devices.
    pub(crate) fn place(&mut self, world: u32) -> Vec<RankPlan> {
        if self.taken > 0 && self.taken + world > self.devices_per_node {
            self.node += 1;
            self.taken = 0;
        }
        let (node, first) = (self.node, self.taken);
        let ranks = (0..world).map(|rank| {
            let device = first + rank;
            RankPlan { rank, node: node + device / self.devices_per_node, device: device % self.devices_per_node }
        });
        let ranks = ranks.collect();
        let end = first + world;
        self.node += end / self.devices_per_node;
        self.taken = end % self.devices_per_node;
        ranks
    }

    /// Nodes that are taken, those before the first rank included.
    pub(crate) fn used(&self) -> u32 {
        self.node + u32::from(self.taken > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_workers_share_a_node_and_large_ones_fill_nodes() {
        let mut nodes = Nodes::after(0, 4);
        let at = |ranks: &[RankPlan]| (ranks[0].node, ranks[0].device, ranks.len());
        assert_eq!(at(&nodes.place(2)), (0, 0, 2));
        // Three do not fit beside two.
        assert_eq!(at(&nodes.place(3)), (1, 0, 3));
        let wide = nodes.place(8);
        assert_eq!(at(&wide), (2, 0, 8));
        assert_eq!((wide[7].node, wide[7].device), (3, 3));
        assert_eq!(nodes.used(), 4);
        let mut behind = Nodes::after(2, 4);
        assert_eq!((at(&behind.place(4)), behind.used()), ((2, 0, 4), 3));
    }
}
