//! `services`: prints what the kernel serves on this node: frontends, their clients, what happens to a new flow,
//! endpoints.
//!
//! It reads the pinned maps, so it shows what is in force, whether or not the agent runs and whatever the agent
//! believes. What the kernel does not know is the agent's, or of its checkpoint: names, closure, and of a Service that
//! is asked for, which endpoints take no traffic, and why. Where both do not agree, it says so.

mod asked;
mod row;

use serde::Serialize;

use self::asked::Asked;
use self::row::{Row, rows};
use super::names::{Names, remark_line};
use super::verbs::VerbError;
use crate::config::Place;
use crate::config::flags::{Form, ServicesArgs};
use crate::dataplane::service::in_force::TableInForce;
use crate::error::chain;
use crate::explain::services::{Expected, is_of};
use crate::host::columns::columns;
use crate::observe::control::{ControlError, Request, ask};
use crate::output::print;
use crate::text;

/// How many endpoints of a row the short table shows.
const SHOWN_ENDPOINTS: usize = 4;

/// The object that `services -o json` prints.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    /// Sorted by name; services without a known name come last.
    services: Vec<Row>,
    /// Whether programs are attached: otherwise nothing of this is in force.
    is_attached: bool,
    /// Why the names of Services do not come from the agent.
    remark: Option<String>,
    /// What is known of the Service that was asked for; `None` without one, or if nothing is known.
    #[serde(flatten)]
    asked: Option<Asked>,
}

impl Listing {
    /// The rows of the wanted Service, or all, with their names.
    fn new(table: &TableInForce, mut rows: Vec<Row>, names: Names, wanted: Option<&str>) -> Self {
        for row in &mut rows {
            if let Some(named) = names.known.get(&row.frontend()) {
                row.service = Some(named.service.clone());
                row.closure = named.closure;
            }
        }
        if let Some(wanted) = wanted {
            let is_wanted = |name: &String| is_of(name, wanted);
            rows.retain(|row| row.service.as_ref().is_some_and(is_wanted));
        }
        rows.sort_by(|one, other| one.order().cmp(&other.order()));
        Self {
            services: rows,
            is_attached: table.is_attached,
            remark: names.remark,
            asked: None,
        }
    }

    /// Adds what should be in force.
    fn expect(&mut self, expected: Expected) {
        self.asked = Some(Asked::new(&self.services, expected));
    }

    fn text(&self, form: Form) -> Result<String, VerbError> {
        Ok(match form {
            Form::Json => text::json(self)? + "\n",
            Form::Yaml => text::yaml(self)?,
            Form::Table | Form::Wide => self.table(form),
        })
    }

    fn table(&self, form: Form) -> String {
        let mut table = match form {
            Form::Wide => {
                let titles = [
                    "SERVICE",
                    "PROTOCOL",
                    "CLOSURE",
                    "FRONTEND",
                    "CLIENTS",
                    "VERDICT",
                    "AFFINITY",
                    "RANGES",
                    "ENDPOINTS",
                ];
                columns(titles, self.services.iter().map(Row::wide))
            }
            Form::Table | Form::Json | Form::Yaml => {
                let titles = [
                    "SERVICE",
                    "PROTOCOL",
                    "CLOSURE",
                    "FRONTEND",
                    "CLIENTS",
                    "VERDICT",
                    "ENDPOINTS",
                ];
                let rows = self.services.iter().map(|row| row.columns(SHOWN_ENDPOINTS));
                columns(titles, rows)
            }
        };
        if !self.is_attached {
            table += "no program is attached: nothing of this is in force (`yurt-net run` attaches them)\n";
        }
        if let Some(asked) = &self.asked {
            table += &asked.lines();
        }
        table + &remark_line(self.remark.as_deref())
    }
}

/// What the Service should do: by the agent, otherwise by what it left. Fails with words on why neither says it.
async fn expected(place: &Place, names: &Names, service: &str) -> Result<Expected, String> {
    if let Some(kept) = &names.kept {
        let unknown = || "how the agent was told to run is not known".to_owned();
        return kept.expected(service).ok_or_else(unknown);
    }
    let request = Request::Expected(service.to_owned());
    let answer = ask(&place.sockets(), &request).await;
    let expected =
        answer.and_then(|answer| serde_json::from_value(answer).map_err(ControlError::Answer));
    expected.map_err(|error| chain(&error))
}

/// Prints the services. Reads only.
pub async fn services(args: &ServicesArgs) -> Result<(), VerbError> {
    let place = args.place.place();
    let table = TableInForce::read(&place.bpffs)?;
    let Some(table) = table else {
        let none = Listing::default();
        return Ok(print(match args.output {
            Form::Json | Form::Yaml => none.text(args.output)?,
            Form::Table | Form::Wide => {
                "no Service is in the kernel: `yurt-net run` puts them there\n".to_owned()
            }
        })?);
    };
    let rows = rows(&table.image);
    let frontends = rows.iter().map(Row::frontend).collect();
    let names = match args.service {
        Some(_) => Names::needed(&place, &frontends).await?,
        None => Names::of(&place, &frontends).await,
    };
    let wanted = args.service.as_deref();
    let expected = match wanted {
        Some(wanted) => Some(expected(&place, &names, wanted).await),
        None => None,
    };
    let mut listing = Listing::new(&table, rows, names, wanted);
    match expected {
        None => {}
        Some(Ok(expected)) => listing.expect(expected),
        Some(Err(why)) => {
            let why = format!("which endpoints take no traffic is not known: {why}");
            let remarks = listing.remark.into_iter().chain([why]);
            listing.remark = Some(remarks.collect::<Vec<_>>().join("; "));
        }
    }
    match (args.output, wanted) {
        (Form::Table | Form::Wide, Some(wanted)) if listing.services.is_empty() => {
            let why = listing
                .asked
                .as_ref()
                .map_or_else(String::new, Asked::lines);
            print(format!(
                "the kernel has no frontend of {}: `yurt-net plan` and `yurt-net status` say why\n{why}",
                text::name(wanted)
            ))?;
        }
        (form, _) => print(listing.text(form)?)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests;
