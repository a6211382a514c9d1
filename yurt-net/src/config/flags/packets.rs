//! Flags of the packet path.

use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::config::agent::PacketConfig;
use crate::dataplane::packet::{FlowCapacity, PacketOptions};
use crate::edge::Patterns;
use crate::edge::fast::FastPath;

/// How packets are served.
#[derive(Args, Clone, Debug)]
pub struct PacketArgs {
    /// Devices that lead outside this node, with * and ?; repeatable [default: those with a default route, hardware
    /// with an address, and the tunnels of overlays]. Raven's are never touched, and those of Pods (--device) never
    /// lead outside.
    #[arg(long, value_name = "GLOB")]
    pub edge_device: Vec<String>,
    /// Ports that stand for clients outside where their backend is on another node, and for Pods that are led to
    /// themselves. Those that are in net.ipv4.ip_local_port_range are put into net.ipv4.ip_local_reserved_ports.
    #[arg(long, default_value = "12000-29999", value_name = "FIRST-LAST")]
    pub snat_ports: Ports,
    /// Entries for IPv4 flows of 96 bytes: five eighths for connections, a quarter for flows of datagrams. Besides them
    /// there are three eighths as many for flows that are opening or closed. A flow has two entries, or three where its
    /// backend is on another node. Where all are taken, the one that was quiet for longest makes room.
    #[arg(long, default_value_t = PacketOptions::DEFAULT.flows.v4, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=1 << 22))]
    pub max_flows4: u32,
    /// Entries for IPv6 flows, likewise. 144 bytes.
    #[arg(long, default_value_t = PacketOptions::DEFAULT.flows.v6, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=1 << 22))]
    pub max_flows6: u32,
    /// Lead packets of clients outside to Pods of this node past the node's stack, and their answers: always, or while
    /// no rule of netfilter, no IPsec policy and no program of others would be skipped.
    #[arg(long, default_value = "off", value_enum)]
    pub fast_path: FastPathArg,
}

/// `--fast-path`, as [`FastPath`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FastPathArg {
    /// While nothing of others would be skipped.
    Auto,
    /// Whatever is skipped.
    On,
    /// Never.
    Off,
}

impl PacketArgs {
    /// The same, as the agent takes it. `pods`: patterns of the names of devices that lead to Pods.
    pub fn config(&self, pods: &[String]) -> PacketConfig {
        let Ports(first, last) = self.snat_ports;
        PacketConfig {
            options: PacketOptions {
                flows: FlowCapacity {
                    v4: self.max_flows4,
                    v6: self.max_flows6,
                },
                // There are no more than fit: the first one is not 0.
                ports: (first, last - first + 1),
                has_fast_path: self.fast_path != FastPathArg::Off,
            },
            fast: match self.fast_path {
                FastPathArg::Auto => FastPath::Auto,
                FastPathArg::On => FastPath::On,
                FastPathArg::Off => FastPath::Off,
            },
            devices: Patterns {
                edges: self.edge_device.clone(),
                pods: pods.to_vec(),
            },
        }
    }
}

/// A range of ports: the first and the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(pub u16, pub u16);

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "expected FIRST-LAST, as 12000-29999, from 1024 on and at least 64 of them";
        let (first, last) = text.split_once('-').ok_or(EXPECTED)?;
        let (first, last) = (first.parse::<u16>().ok(), last.parse::<u16>().ok());
        let (first, last) = first.zip(last).ok_or(EXPECTED)?;
        (first >= 1024 && last >= first.saturating_add(63))
            .then_some(Self(first, last))
            .ok_or(EXPECTED)
    }
}
