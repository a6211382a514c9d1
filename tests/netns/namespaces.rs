//! The machine's network namespaces, as the agent finds and enters them.

use std::fs;
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use yurt_net::host::netns;
use yurt_net::host::netns::Netns;
use yurt_net_tests::lab::Lab;

#[test]
fn a_pods_namespace_is_found_entered_and_told_by_its_cookie() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    let pods = [node.pod("a")?, node.pod("b")?];
    let namespaces = netns::all()?;
    let own = netns::cookie()?;
    let seen = netns::inside(&namespaces, |_| {
        let can_bind = pods
            .each_ref()
            .map(|pod| UdpSocket::bind((pod.ip4(), 0)).is_ok());
        (netns::cookie(), can_bind)
    })?;
    let mut cookies = Vec::new();
    for index in 0..pods.len() {
        let place = seen
            .iter()
            .position(|seen| seen.as_ref().is_ok_and(|(_, can_bind)| can_bind[index]))
            .context("no namespace has the Pod's address")?;
        let (cookie, _) = seen[place].as_ref().map_err(ToString::to_string).unwrap();
        cookies.push(cookie.as_ref().unwrap().context("this kernel tells")?);
    }
    assert_ne!(cookies[0], cookies[1]);
    assert!(!cookies.contains(&own.context("this kernel tells")?));
    // It was another thread that went there.
    assert_eq!(netns::cookie()?, own);
    Ok(())
}

#[test]
fn a_namespace_that_only_a_name_keeps_is_found_and_what_is_left_of_a_name_is_not() -> Result<()> {
    // Gives this thread mounts of its own.
    let _lab = Lab::new()?;
    mount(None, Path::new("/run"), Some("tmpfs"))?;
    fs::create_dir("/run/netns")?;
    let name = Path::new("/run/netns/cni-1");
    File::create(name)?;
    File::create("/run/netns/cni-0")?;
    let inode = std::thread::scope(|scope| {
        let make = || -> Result<u64> {
            // SAFETY: no pointers; affects this thread alone.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            anyhow::ensure!(result == 0, io::Error::last_os_error());
            mount(Some(Path::new("/proc/thread-self/ns/net")), name, None)?;
            Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
        };
        scope.spawn(make).join().unwrap()
    })?;
    let inodes: Vec<u64> = netns::all()?.iter().map(Netns::inode).collect();
    assert!(inodes.contains(&inode));
    assert!(!inodes.contains(&fs::metadata("/run/netns/cni-0")?.ino()));
    Ok(())
}

/// Mounts a file system of a type, or binds a file.
fn mount(source: Option<&Path>, at: &Path, fstype: Option<&str>) -> Result<()> {
    let c_path = |path: &Path| std::ffi::CString::new(path.as_os_str().as_encoded_bytes());
    let (source, at) = (c_path(source.unwrap_or(at))?, c_path(at)?);
    let flags = if fstype.is_some() { 0 } else { libc::MS_BIND };
    let fstype = std::ffi::CString::new(fstype.unwrap_or("none"))?;
    // SAFETY: the strings end in zero and outlive the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            at.as_ptr(),
            fstype.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    anyhow::ensure!(result == 0, io::Error::last_os_error());
    Ok(())
}
