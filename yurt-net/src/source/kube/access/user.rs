//! What a kubeconfig's user adds to each request: its token or password, and the user to impersonate.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use kube::config::AuthInfo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};

/// What the name of a header may have; a key that has other bytes is escaped, as client-go does.
const NOT_IN_HEADERS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// This user, with a token that takes the place of all other credentials.
pub(super) fn with_token(user: &AuthInfo, token: &str) -> AuthInfo {
    AuthInfo {
        token: Some(SecretString::from(token)),
        impersonate: user.impersonate.clone(),
        impersonate_uid: user.impersonate_uid.clone(),
        impersonate_groups: user.impersonate_groups.clone(),
        impersonate_user_extra: user.impersonate_user_extra.clone(),
        ..AuthInfo::default()
    }
}

/// The headers, or why there are none. An exec plugin has put its token into the user.
pub(super) fn headers(user: &AuthInfo) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    if let Some(text) = authorization(user)? {
        let mut value = HeaderValue::try_from(text)
            .map_err(|_secret| "the token or password has bytes that no header may have")?;
        value.set_sensitive(true);
        headers.push((AUTHORIZATION, value));
    }
    let groups = user.impersonate_groups.iter().flatten();
    let groups = groups.map(|group| ("impersonate-group".to_owned(), group));
    let uid = user.impersonate_uid.iter();
    let uid = uid.map(|uid| ("impersonate-uid".to_owned(), uid));
    let extra = user.impersonate_user_extra.iter().flatten();
    let extra = extra.flat_map(|(key, values)| {
        let key = key.to_ascii_lowercase();
        let key = utf8_percent_encode(&key, NOT_IN_HEADERS);
        let name = format!("impersonate-extra-{key}");
        values.iter().map(move |value| (name.clone(), value))
    });
    let of_user: Vec<_> = groups.chain(uid).chain(extra).collect();
    match user.impersonate.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => headers.push((named("impersonate-user")?, value(name)?)),
        None if of_user.is_empty() => {}
        None => return Err("as-uid, as-groups and as-user-extra need the user's as".to_owned()),
    }
    for (name, text) in of_user {
        headers.push((named(&name)?, value(text)?));
    }
    Ok(headers)
}

/// The first of these counts, as with kubectl.
fn authorization(user: &AuthInfo) -> Result<Option<String>, String> {
    let bearer = |token: &str| format!("Bearer {}", token.trim());
    if let Some(provider) = &user.auth_provider {
        let token = provider.config.get("id-token");
        let token = token.filter(|_| ["oidc", "gcp"].contains(&&*provider.name));
        return match token {
            Some(token) => Ok(Some(bearer(token))),
            None => Err(format!(
                "the auth-provider {} is not supported: use an exec plugin",
                provider.name
            )),
        };
    }
    if let (Some(name), Some(password)) = (&user.username, &user.password) {
        let both = format!("{name}:{}", password.expose_secret());
        return Ok(Some(format!("Basic {}", BASE64_STANDARD.encode(both))));
    }
    let token = user.token.as_ref();
    Ok(token.map(|token| bearer(token.expose_secret())))
}

fn named(name: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(name).map_err(|_invalid| format!("{name:?} is no name of a header"))
}

fn value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::try_from(text)
        .map_err(|_invalid| format!("{text:?}, as whom it asks, has bytes that no header may have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(yaml: &str) -> AuthInfo {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn said(user: &AuthInfo) -> Vec<String> {
        let headers = headers(user).unwrap();
        let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).unwrap();
        let headers = headers.iter();
        headers
            .map(|(name, value)| format!("{name}: {}", text(value)))
            .collect()
    }

    #[test]
    fn a_user_is_who_the_kubeconfig_says_in_each_form_of_credentials() {
        for (yaml, expected) in [
            ("{}", None),
            ("{token: t}", Some("authorization: Bearer t")),
            ("{token: \"t\\r\\n\"}", Some("authorization: Bearer t")),
            (
                "{username: a, password: b}",
                Some("authorization: Basic YTpi"),
            ),
            (
                "{username: a, password: b, token: t}",
                Some("authorization: Basic YTpi"),
            ),
            (
                "{auth-provider: {name: oidc, config: {id-token: t}}}",
                Some("authorization: Bearer t"),
            ),
        ] {
            assert_eq!(said(&user(yaml)), Vec::from_iter(expected), "{yaml}");
        }
        let sensitive = &headers(&user("{token: t}")).unwrap()[0].1;
        assert!(sensitive.is_sensitive());
    }

    #[test]
    fn as_whom_a_user_asks_goes_along_with_every_form_of_credentials() {
        let impersonates =
            "as: eve, as-uid: '7', as-groups: [a, b], as-user-extra: {Acme.com/X: [1a, 2b]}";
        let expected = [
            "impersonate-user: eve",
            "impersonate-group: a",
            "impersonate-group: b",
            "impersonate-uid: 7",
            "impersonate-extra-acme.com%2fx: 1a",
            "impersonate-extra-acme.com%2fx: 2b",
        ];
        for form in ["token: t", "username: a, password: b", "tokenFile: /x"] {
            let all = user(&format!("{{{form}, {impersonates}}}"));
            for user in [with_token(&all, "other"), all] {
                let said = said(&user);
                let said: Vec<&String> = said
                    .iter()
                    .filter(|line| !line.starts_with("auth"))
                    .collect();
                assert_eq!(said, expected, "{form}");
            }
        }
        assert_eq!(
            said(&with_token(&user("{username: a, password: b}"), "t"))[0],
            "authorization: Bearer t"
        );
    }

    #[test]
    fn what_cannot_be_sent_is_an_error_that_names_it_and_no_secret() {
        for (yaml, expected) in [
            ("{as-groups: [a]}", "as"),
            ("{as: \"a\\nb\"}", "as whom it asks"),
            ("{token: \"secret\\nsecret\"}", "the token or password"),
            (
                "{auth-provider: {name: azure, config: {access-token: secret}}}",
                "azure",
            ),
        ] {
            let error = headers(&user(yaml)).unwrap_err();
            assert!(
                error.contains(expected) && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
