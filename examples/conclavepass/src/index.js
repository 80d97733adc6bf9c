// A password manager as a confidential function. Nobody but this code, running in the enclave, sees a database: what
// reaches the store is sealed under a key that mixes the project's key with the user's password.

const label = 'conclavepass/v1';
const utf8 = new TextEncoder();

// databaseKey derives the user's AES key. The length prefix keeps ("a", "bc") and ("ab", "c") apart.
async function databaseKey(userToken, password) {
  const project = await crypto.subtle.importKey('raw', utf8.encode(crypto.getProjectKey()), { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
  const secret = await crypto.subtle.sign('HMAC', project, utf8.encode(JSON.stringify([label, userToken, password])));
  return crypto.subtle.importKey('raw', secret, 'AES-GCM', false, ['encrypt', 'decrypt']);
}

class ConclavePass {
  constructor(userToken, password) {
    if (typeof userToken !== 'string' || !/^[0-9a-f]{64}$/.test(userToken)) throw new TypeError('the user token is a SHA-256 hash in hex');
    if (typeof password !== 'string' || password === '') throw new TypeError('a password is needed');
    this.userToken = userToken;
    this.password = password;
  }

  async load() {
    const record = await kv.get(`passwords/${this.userToken}`, 'bytes');
    // The first access of a user sets the password.
    if (record === null) return { passwords: [] };
    const key = await databaseKey(this.userToken, this.password);
    const algorithm = { name: 'AES-GCM', iv: record.subarray(0, 12), additionalData: utf8.encode(this.userToken) };
    let plain;
    try {
      plain = await crypto.subtle.decrypt(algorithm, key, record.subarray(12));
    } catch {
      throw new Error('wrong password');
    }
    return JSON.parse(new TextDecoder().decode(plain));
  }

  async save(database) {
    const key = await databaseKey(this.userToken, this.password);
    const iv = crypto.getRandomValues(new Uint8Array(12));
    const algorithm = { name: 'AES-GCM', iv, additionalData: utf8.encode(this.userToken) };
    const sealed = new Uint8Array(await crypto.subtle.encrypt(algorithm, key, utf8.encode(JSON.stringify(database))));
    const record = new Uint8Array(12 + sealed.length);
    record.set(iv);
    record.set(sealed, 12);
    await kv.put(`passwords/${this.userToken}`, record);
  }
}

function checkEntry({ url, description = '', username = '', password }) {
  for (const field of [url, description, username, password]) {
    if (typeof field !== 'string') throw new TypeError('an entry has url, description, username and password, all texts');
  }
  return { url, description, username, password };
}

// addEntry adds an entry, replacing one of the same URL.
export async function addEntry(userToken, password, entry) {
  const pass = new ConclavePass(userToken, password);
  const added = checkEntry(entry ?? {});
  const database = await pass.load();
  await pass.save({ passwords: [...database.passwords.filter(({ url }) => url !== added.url), added] });
  return 'ok';
}

// query lists the entries whose URL or description contains the text, without their passwords.
export async function query(userToken, password, search = '') {
  const { passwords } = await new ConclavePass(userToken, password).load();
  return passwords
    .filter(({ url, description }) => url.includes(search) || description.includes(search))
    .map(({ url, description, username }) => ({ url, description, username, password: '' }));
}

// get returns the entry of exactly this URL, or null.
export async function get(userToken, password, url) {
  const { passwords } = await new ConclavePass(userToken, password).load();
  return passwords.find((entry) => entry.url === url) ?? null;
}

// remove deletes the entry of exactly this URL.
export async function remove(userToken, password, url) {
  const pass = new ConclavePass(userToken, password);
  const { passwords } = await pass.load();
  await pass.save({ passwords: passwords.filter((entry) => entry.url !== url) });
  return 'ok';
}
