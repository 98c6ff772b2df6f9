// Uses the vendor's SDK the way its examples do: it subscribes on auth_success,
// and once more on each of the next frames. It prints every frame and the close.
import { websocketClient } from "@massive.com/client-js";

const [base, market, key, topics] = process.argv.slice(2);
const ws = websocketClient(key, base)[market]();
const subscribe = () => ws.send(JSON.stringify({ action: "subscribe", params: topics }));
let again = 0;
ws.onmessage = ({ data }) => {
  console.log(data);
  const [message] = JSON.parse(data);
  if (message.status === "auth_success") again = 10;
  if (again-- > 0) subscribe();
};
ws.onclose = ({ code, reason }) => console.log(`closed: ${code} ${reason}`);
