//! How large one list may be, over all of its pages.
//!
//! Pure. The agent does not ask for pages, so an apiserver sends none; a proxy in front of it may. A proxy that drops
//! the query answers with the first page for ever, and one that lies sends more objects each time: such a list is given
//! up before it takes the node's memory. The limits are far above what Kubernetes is made for (10,000 Services, 150,000
//! Pods).
#![forbid(unsafe_code)]

use super::resource::Resource;

/// Pages of one list. At 500 objects a page, the page size of most clients, this is [`MOST_OBJECTS`].
const MOST_PAGES: usize = 200;
/// Objects of one list.
const MOST_OBJECTS: usize = 100_000;
/// Bytes of the objects of one list, as text. The agent keeps about a tenth of them.
const MOST_BYTES: usize = 512 << 20;

/// A list was given up; says which and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the list of {resource} does not end: {why}")]
pub(super) struct Endless {
    resource: Resource,
    why: Why,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error("it has more than {MOST_PAGES} pages")]
    Pages,
    #[error("it has more than {MOST_OBJECTS} objects")]
    Objects,
    #[error("its objects have more than {MOST_BYTES} bytes")]
    Bytes,
    #[error("a page names itself as the next one")]
    Circle,
}

/// What has arrived of a list so far.
#[derive(Debug)]
pub(super) struct Extent {
    resource: Resource,
    pages: usize,
    objects: usize,
    bytes: usize,
    token: String,
}

impl Extent {
    /// The extent of a list that begins.
    pub(super) fn of(resource: Resource) -> Self {
        Self {
            resource,
            pages: 1,
            objects: 0,
            bytes: 0,
            token: String::new(),
        }
    }

    /// Counts one more object, of so many bytes.
    pub(super) fn object(&mut self, bytes: usize) -> Result<(), Endless> {
        self.objects += 1;
        self.bytes += bytes;
        match (self.objects > MOST_OBJECTS, self.bytes > MOST_BYTES) {
            (true, _) => Err(self.endless(Why::Objects)),
            (_, true) => Err(self.endless(Why::Bytes)),
            _ => Ok(()),
        }
    }

    /// Counts one more page, which is requested with this token.
    pub(super) fn page(&mut self, token: &str) -> Result<(), Endless> {
        if self.token == token {
            return Err(self.endless(Why::Circle));
        }
        token.clone_into(&mut self.token);
        self.pages += 1;
        match self.pages > MOST_PAGES {
            true => Err(self.endless(Why::Pages)),
            false => Ok(()),
        }
    }

    fn endless(&self, why: Why) -> Endless {
        let resource = self.resource;
        Endless { resource, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_the_largest_cluster_passes_in_pages_and_whole() {
        let mut paged = Extent::of(Resource::EndpointSlices);
        for page in 1..=MOST_PAGES {
            for _ in 0..MOST_OBJECTS / MOST_PAGES {
                paged.object(5000).unwrap();
            }
            if page < MOST_PAGES {
                paged.page(&page.to_string()).unwrap();
            }
        }
        let mut whole = Extent::of(Resource::EndpointSlices);
        (0..MOST_OBJECTS).for_each(|_| whole.object(5000).unwrap());
    }

    #[test]
    fn a_list_is_given_up_by_pages_by_objects_by_bytes_and_where_it_goes_round() {
        let mut list = Extent::of(Resource::Services);
        let end = (0..).find_map(|page: u32| list.page(&page.to_string()).err());
        assert_eq!(
            end.unwrap().to_string(),
            "the list of services does not end: it has more than 200 pages"
        );
        let mut list = Extent::of(Resource::Services);
        let end = (0..).find_map(|_: u32| list.object(1).err());
        assert_eq!(end.unwrap().why, Why::Objects);
        let mut list = Extent::of(Resource::Services);
        let end = (0..).find_map(|_: u32| list.object(1 << 20).err());
        assert_eq!(end.unwrap().why, Why::Bytes);
        let mut list = Extent::of(Resource::Services);
        list.page("a").unwrap();
        assert_eq!(list.page("a").unwrap_err().why, Why::Circle);
    }
}
