// Sign-in. The printed address carries the token behind '#', which browsers send to nobody.
import { send } from "./api.js";

const form = document.getElementById("sign-in");
const field = document.getElementById("token");
const alert = document.getElementById("alert");

async function signIn(token) {
  try {
    await send("POST", "/login", { token });
    location.replace("/");
  } catch (error) {
    alert.textContent = error.message;
    alert.hidden = false;
    field.focus();
  }
}

if (field) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    signIn(field.value.trim());
  });
  const given = decodeURIComponent(location.hash.slice(1));
  if (given) {
    history.replaceState(null, "", location.pathname);
    signIn(given);
  } else field.focus();
}
