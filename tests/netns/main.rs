//! The real agent and real sockets, in a lab of namespaces. Needs root.

#[path = "../cases/case.rs"]
mod case;

mod addresses;
mod affinity;
mod capacity;
mod capture;
mod choice;
mod closure;
mod commands;
mod configuration;
mod devices;
mod drift;
mod established;
mod files;
mod flows;
mod frames;
mod frontends;
mod golden;
mod guard;
mod health;
mod icmp;
mod inside;
mod kernel;
mod matrix;
mod metrics;
mod monitor;
mod namespaces;
mod node_local;
mod offloads;
mod outside;
mod peers;
mod policies;
mod refusal;
mod restart;
mod said;
mod selftest;
mod source_ranges;
mod strangers;
mod translate;
mod udp;
mod untouched;
mod uplinks;
mod vtep;
mod vtep_peers;
mod world;
