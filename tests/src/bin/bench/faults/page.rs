//! The section of the page.

use std::fmt::Write as _;

use super::{Clients, DIGITS_RATE, DURING, Fault, Measured, Seen};
use crate::origin;

pub(super) fn write(about: &str, all: &[(Fault, Measured)], text: &mut String) {
    let _ = writeln!(
        text,
        "## {about}\n\nSix devices of 25 % of a core, both models in three stages on one device each; open-loop clients at a \
         device that the fault does not hit: {DIGITS_RATE:.0}/s of digits, and of ResNet-50 half of what clients that ask \
         again at once were answered before (requests/s below). Every answer is compared with the whole model's. In seconds; \
         with so few tries the 99th percentile is the longest. What others publish: a device that is killed is noticed after \
         up to 40 s (exo), about 41 s (mesh-llm) or 30 s (Parallax), and requests that were on it end with an error. Losses \
         come from a relay in user space (`tests/lab/scenarios/faults-far.toml`), which also delays what a card sends by \
         1 ms.\n\nFrom the fault to the first answer by a route that was picked after it (to a request that the mesh has sent \
         again, or that arrived since), the time to the next request included; over the tries that hit a device with a stage \
         of the model, or over all where none did.\n\n\
         | what happens | promised | digits: tries that hit it | median | longest | ResNet-50: tries that hit it | median | \
         longest | answers wrong | lost | refused (503) | tries after which the mesh was not whole again |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for (fault, measured) in all {
        let _ = writeln!(text, "{}", new_routes(*fault, measured));
    }
    let _ = writeln!(
        text,
        "\nThe same to the first answer to a request that arrived after the fault. Those that the fault held up come before \
         it.\n\n| what happens | digits: median | longest | ResNet-50: median | longest |\n|---|---|---|---|---|"
    );
    for (fault, measured) in all {
        let of = |clients: &dyn Fn(&Seen) -> Option<Clients>| {
            spread(counted(measured, clients).1.iter().map(|clients| clients.first_s).collect())
        };
        let (digits, resnet) = (of(&|seen| Some(seen.digits)), of(&|seen| seen.resnet));
        let _ = writeln!(text, "| {} | {digits} | {resnet} |", fault.name());
    }
    let _ = writeln!(
        text,
        "\nThe longest time without any answer, and the longest that a client waited, over all tries. ResNet-50 is asked \
         rarely: with nothing happening the longest pause between two requests already shows. A longest wait counts \
         requests, too, that are answered after the {:.0} s watched, while the fault lasts.\n\n\
         | what happens | tries | requests/s of ResNet-50 | digits: without an answer, median | longest | ResNet-50: the \
         same, median | longest | a client of digits waited, median | longest | of ResNet-50, median | longest |\n\
         |---|---|---|---|---|---|---|---|---|---|---|",
        DURING.as_secs_f64()
    );
    for (fault, measured) in all {
        let _ = writeln!(text, "{}", silences(*fault, measured));
    }
    let parts = all.iter().map(|(fault, measured)| (fault.name().to_owned(), &measured.origin));
    let _ = writeln!(text, "\n{}", origin::told(parts));
}

/// Median and longest; dashes where there is nothing.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    match values.last() {
        Some(longest) => format!("{:.2} | {longest:.2}", values[values.len() / 2]),
        None => "- | -".to_owned(),
    }
}

/// How many tries hit a device with a stage, and what clients saw in those; in all where none did.
fn counted(measured: &Measured, clients: &dyn Fn(&Seen) -> Option<Clients>) -> (usize, Vec<Clients>) {
    let all: Vec<Clients> = measured.seen.iter().filter_map(clients).collect();
    let hit: Vec<Clients> = all.iter().copied().filter(|clients| clients.was_hit).collect();
    (hit.len(), if hit.is_empty() { all } else { hit })
}

fn new_routes(fault: Fault, measured: &Measured) -> String {
    let of = |clients: &dyn Fn(&Seen) -> Option<Clients>| {
        let (hit, counted) = counted(measured, clients);
        format!("{hit} | {}", spread(counted.iter().filter_map(|clients| clients.new_route_s).collect()))
    };
    let sum = |value: fn(&Seen) -> u64| measured.seen.iter().map(value).sum::<u64>();
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |",
        fault.name(),
        fault.promised_s().map_or("-".to_owned(), |seconds| format!("{seconds:.0}")),
        of(&|seen| Some(seen.digits)),
        of(&|seen| seen.resnet),
        sum(|seen| seen.wrong),
        sum(|seen| seen.lost),
        sum(|seen| seen.refused),
        sum(|seen| u64::from(seen.unhealed.is_some()))
    )
}

fn silences(fault: Fault, measured: &Measured) -> String {
    let of = |value: fn(&Clients) -> f64| {
        let digits = measured.seen.iter().map(|seen| value(&seen.digits)).collect();
        let resnet = measured.seen.iter().filter_map(|seen| seen.resnet.as_ref()).map(value).collect();
        format!("{} | {}", spread(digits), spread(resnet))
    };
    let rates = &measured.resnet_rates;
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    let rates = if most - least < 0.05 { format!("{most:.1}") } else { format!("{least:.1} to {most:.1}") };
    format!(
        "| {} | {} | {rates} | {} | {} |",
        fault.name(),
        measured.seen.len(),
        of(|clients| clients.silence_s),
        of(|clients| clients.wait_s)
    )
}
