// A password manager as a confidential function: one file, no build step.
//
// Calls arrive sealed end to end and kv is encrypted under a key of this project, so the machine's host sees neither a
// token nor an entry. Anyone may call a function, therefore every call shows a token; the first one that is used claims
// the store. A call is a transaction: if it throws, nothing of it is kept.

async function check(token) {
	if (typeof token !== 'string' || token.length < 8) throw new TypeError('the token needs at least 8 characters');
	const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(token)));
	const have = btoa(String.fromCharCode(...digest));
	const want = await kv.get('token', 'text');
	if (want === null) await kv.put('token', have);
	else if (want !== have) throw new Error('wrong token');
}

const key = (site) => {
	if (typeof site !== 'string' || site === '' || site.length > 256) throw new TypeError('a site has 1 to 256 characters');
	return 'entry/' + site;
};

export async function add(token, site, user, password) {
	await check(token);
	await kv.put(key(site), JSON.stringify({ user, password }));
	return { stored: site };
}

export async function get(token, site) {
	await check(token);
	return await kv.get(key(site), 'json');
}

export async function list(token) {
	await check(token);
	return (await kv.list('entry/')).map((k) => k.slice('entry/'.length));
}

export async function remove(token, site) {
	await check(token);
	await kv.delete(key(site));
	return { removed: site };
}
