//! Real Pods: Debian's containerd and runc, asked through CRI as kubelet asks, call the installed plugins on a node of
//! the lab. Needs root.

mod bare;
mod client;
mod containerd;
mod image;
mod keeping;
mod peer;
mod protobuf;
mod shipped;
