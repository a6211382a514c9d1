//! Many events at once.

use std::time::Duration;

use anyhow::{Result, ensure};
use yurt_net_tests::apiserver::{Resource, Scale};

use crate::followed::Followed;
use crate::{cluster, kube};

const PATIENCE: Duration = Duration::from_secs(60);
const EVENTS: usize = 300;

#[test]
fn events_that_wait_are_taken_up_together() -> Result<()> {
    let api = cluster(&["a"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("a service", |s| s.slices.len() == 1)?;
    followed.until_status("they are watched", |_| {
        api.http().open_watches(Resource::EndpointSlices) == 1
    })?;
    api.pause(Resource::EndpointSlices);
    let scale = Scale::default();
    api.put_all((0..EVENTS).map(|service| scale.slice(service, 0)))?;
    let sent = api.http().bytes_sent(Resource::EndpointSlices);
    api.resume(Resource::EndpointSlices);
    api.http().wait_until(PATIENCE, |http| {
        http.bytes_sent(Resource::EndpointSlices) > sent
    })?;
    let mut turns = 0;
    while followed.slices() < 1 + EVENTS {
        followed.follow(PATIENCE)?;
        turns += 1;
        ensure!(
            turns <= EVENTS / 4,
            "after {turns} turns {}",
            followed.slices()
        );
    }
    Ok(())
}
